import asyncio

import grpc
import pytest
from edge_harness import ADMISSION, RECEIPT

from metergate.core.inference import Delta, ToolCallDelta
from metergate.edges.inference import StreamSink
from metergate.v1 import inference_pb2


class Wire:
    """Serializes when a write begins, as gRPC does."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, event: inference_pb2.StreamCompleteResponse) -> None:
        self.written.append(event.SerializeToString())
        await asyncio.sleep(0)


async def test_every_delta_leaves_as_if_it_were_the_only_one() -> None:
    deltas = [
        Delta(content="a"),
        Delta(reasoning_content="r", content="b"),
        Delta(content="天"),
        Delta(tool_calls=(ToolCallDelta(index=1, arguments="{}"),)),
        Delta(content="c"),
        Delta(),
    ]
    together, alone = Wire(), Wire()
    sink = StreamSink(together.write)
    for delta in deltas:
        await sink.deliver(delta)
        await StreamSink(alone.write).deliver(delta)
    assert together.written == alone.written
    assert inference_pb2.StreamCompleteResponse.FromString(together.written[-1]).WhichOneof("event") == "delta"


@pytest.mark.parametrize("error", [grpc.aio.InternalError("broken"), grpc.aio.UsageError("RPC already finished.")])
async def test_a_write_to_an_app_that_is_gone_is_a_cancellation(error: Exception) -> None:
    async def write(event: inference_pb2.StreamCompleteResponse) -> None:
        raise error

    sink = StreamSink(write)
    for writing in (sink.admit(ADMISSION), sink.deliver(Delta(content="a")), sink.receipt(RECEIPT)):
        with pytest.raises(asyncio.CancelledError):
            await writing

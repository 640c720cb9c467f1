"""An app that does not read holds up neither a handler nor, for ever, a call's place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from edge_harness import ADMISSION, APP_KEY, Edge, bearer, running_edge

from metergate.core.errors import BackendUnavailable
from metergate.core.inference import Delta
from metergate.edges import calls
from metergate.edges.server import ServerLimits
from metergate.ports import Sink
from metergate.v1 import chat_pb2, inference_pb2, inference_pb2_grpc

REQUEST = inference_pb2.StreamCompleteRequest(
    inference=inference_pb2.Inference(
        request_id="r1",
        model="models/small",
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="Hi")])],
    )
)
# One HTTP/2 window, so that a write is held back soon.
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_535),
]


def tasks(name: str) -> "set[asyncio.Task[object]]":
    """The tasks that run a coroutine of this name; gRPC's own have these."""
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == name}


async def until_none(name: str) -> None:
    """Wait for all of them to end."""
    if running := tasks(name):
        _, left = await asyncio.wait(running, timeout=15)
        assert not left


@asynccontextmanager
async def an_app_that_does_not_read(edge: Edge) -> AsyncIterator[None]:
    """A stream that fails while a write is held back by an app that reads its first event only."""
    is_refusing = asyncio.Event()

    async def script(sink: Sink) -> None:
        await sink.admit(ADMISSION)
        try:
            async with asyncio.timeout(0.3):
                while True:
                    await sink.deliver(Delta(content="x" * 60_000))
        except TimeoutError:
            is_refusing.set()
        raise BackendUnavailable(model_id="small", problem="it broke")

    edge.metering.script = script
    address = f"127.0.0.1:{edge.handle.port}"
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamComplete(REQUEST, metadata=bearer(APP_KEY))
        assert await call.read()
        await asyncio.wait_for(is_refusing.wait(), 10)
        assert len(tasks("_handle_exceptions")) == 1
        yield


async def test_a_status_that_nobody_reads_is_given_up(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calls, "STATUS_SECONDS_MAX", 0.2)
    async with an_app_that_does_not_read(edge):
        await until_none("_handle_exceptions")
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


async def test_a_connection_that_breaks_while_its_status_waits_is_no_error_of_ours(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    async with an_app_that_does_not_read(edge):
        pass
    await until_none("_handle_exceptions")
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


async def test_a_call_that_nobody_reads_ends_with_its_connections_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STATUS_SECONDS_MAX", 0.2)
    limits = ServerLimits(call_seconds_max=1.0, connection_seconds_max=1.0)
    async with running_edge(limits) as edge, an_app_that_does_not_read(edge):
        await until_none("_schedule_rpc_coro")

import pytest
from edge_harness import APP_KEY, Edge, bearer

from metergate.edges.trace_context import read_trace_context
from metergate.v1 import chat_pb2, inference_pb2

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_trace_context_is_read_whatever_else_the_metadata_has() -> None:
    metadata = (("authorization", "Bearer x"), ("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2"))
    assert read_trace_context(metadata) == {"traceparent": PARENT, "tracestate": "a=1,b=2"}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        PARENT.upper(),
        f"{PARENT}\n",
        PARENT[:-1],
        f"ff{PARENT[2:]}",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        f"{PARENT}-{'x' * 10_000}",
    ],
)
def test_a_traceparent_that_the_standard_does_not_allow_is_not_passed_on(parent: str) -> None:
    assert read_trace_context((("traceparent", parent), ("tracestate", "a=1"))) == {}


def test_two_traceparents_are_none() -> None:
    assert read_trace_context((("traceparent", PARENT), ("traceparent", PARENT))) == {}


@pytest.mark.parametrize("state", ["", "a=1\r\nx: y", "a=é", "a" * 513])
def test_a_tracestate_that_is_too_long_or_not_printable_is_left_out(state: str) -> None:
    assert read_trace_context((("traceparent", PARENT), ("tracestate", state))) == {"traceparent": PARENT}


async def test_each_method_passes_the_apps_trace_context_on(edge: Edge) -> None:
    metadata = (*bearer(APP_KEY), ("traceparent", PARENT))
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="Hi")])
    asked = inference_pb2.Inference(request_id="q-1", model="models/small", messages=[message])

    async def write_nothing(_: object) -> None:
        return

    edge.metering.script = write_nothing
    await edge.inference.Complete(inference_pb2.CompleteRequest(inference=asked), metadata=metadata)
    completed, edge.metering.trace_context = edge.metering.trace_context, {}
    counting = inference_pb2.CountTokensRequest(model="models/small", messages=[message])
    await edge.inference.CountTokens(counting, metadata=metadata)
    counted, edge.metering.trace_context = edge.metering.trace_context, {}
    stream = edge.inference.StreamComplete(inference_pb2.StreamCompleteRequest(inference=asked), metadata=metadata)
    assert [event async for event in stream] == []
    assert completed == counted == edge.metering.trace_context == {"traceparent": PARENT}

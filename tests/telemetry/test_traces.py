"""Spans of a call: who is whose parent, what they say, and what they never say."""

import asyncio
import threading
from collections.abc import Mapping

import pytest
from metering_world import STOP, KeepingBackend, ScriptedBackend, World, content, request
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from metergate.core.errors import BackendUnavailable, InsufficientCredit
from metergate.core.passage import Passage
from metergate.telemetry import traces as module
from metergate.telemetry.traces import Traces

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}

METHOD = "metergate.v1.InferenceService/StreamComplete"


class Recorded:
    """Traces that keep their spans."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(SimpleSpanProcessor(self._exporter), sample_ratio=sample_ratio)

    def spans(self) -> list[ReadableSpan]:
        """In the order in which they began; those that began together in that of their names."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, span.name))

    def span(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.spans() if span.name == name]
        return span


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def said(span: ReadableSpan) -> Mapping[str, object]:
    return span.attributes or {}


async def test_a_calls_spans_are_below_the_apps_and_the_backends_below_the_dispatch() -> None:
    recorded = Recorded()
    world = await World([*content("one", " two"), STOP], observers=[recorded.traces]).fund(10_000)
    await world.stream(trace_context=SAMPLED)
    server, dispatch = recorded.span(METHOD), recorded.span("dispatch")
    assert {trace_of(span) for span in recorded.spans()} == {TRACE_ID}
    assert parent_of(server) == PARENT_ID
    assert {span.name for span in recorded.spans() if parent_of(span) == id_of(server)} == {
        "admit",
        "dispatch",
        "settle",
    }
    assert (server.kind, dispatch.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert [event.name for event in dispatch.events] == ["first token"]
    sent = world.backend.requests[0].trace_context
    assert sent == {"traceparent": f"00-{TRACE_ID}-{id_of(dispatch)}-01", "tracestate": "vendor=1"}


async def test_each_attempt_is_a_span_and_the_failed_one_says_why() -> None:
    recorded = Recorded()
    failing = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="HTTP 500")], "away")
    serving = ScriptedBackend([*content("one"), STOP], "here")
    world = await World(backends=[failing, serving], observers=[recorded.traces]).fund(10_000)
    await world.stream()
    attempts = [span for span in recorded.spans() if span.name == "dispatch"]
    assert [said(span)["metergate.backend"] for span in attempts] == ["away", "here"]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert attempts[0].status.description == "away: HTTP 500"
    contexts = [backend.requests[0].trace_context["traceparent"] for backend in (failing, serving)]
    assert [context.split("-")[2] for context in contexts] == [id_of(span) for span in attempts]


async def test_an_attempt_that_crossed_a_closing_connection_is_a_span_without_an_error() -> None:
    recorded = Recorded()
    crossed = BackendUnavailable(model_id="model-1", problem="it closed the connection", connection_was_kept=True)
    backend = KeepingBackend([crossed], [*content("one"), STOP], "here")
    world = await World(backends=[backend], observers=[recorded.traces]).fund(10_000)
    await world.stream()
    attempts = [span for span in recorded.spans() if span.name == "dispatch"]
    assert [[event.name for event in span.events] for span in attempts] == [
        ["kept connection closed"],
        ["first token"],
    ]
    assert [span.status.status_code for span in attempts] == [StatusCode.UNSET, StatusCode.UNSET]


class Allowing:
    """A policy that lets everything pass."""

    async def allows(self, passage: Passage) -> bool:
        return True


@pytest.mark.parametrize("policy", [None, Allowing()])
async def test_a_call_says_how_long_the_content_policy_took_if_it_was_asked(policy: Allowing | None) -> None:
    recorded = Recorded()
    world = await World([*content("one"), STOP], observers=[recorded.traces], policy=policy).fund(10_000)
    await world.stream()
    assert ("metergate.content_policy_seconds" in said(recorded.span(METHOD))) is (policy is not None)


async def test_a_call_says_what_it_used_and_what_it_was_charged() -> None:
    recorded = Recorded()
    world = await World([*content("one", " two"), STOP], observers=[recorded.traces]).fund(10_000)
    await world.stream()
    [charge] = await world.charges()
    server = said(recorded.span(METHOD))
    assert server["metergate.outcome"] == "OK"
    assert server["metergate.close_cause"] == "FINISHED"
    assert server["metergate.charge"] == charge.charge_id
    assert server["metergate.charged_microcredits"] == charge.charged_microcredits
    assert server["metergate.deliveries"] == len(world.sink.deltas)
    assert server["metergate.capture_seconds"] >= server["metergate.capture_seconds_max"]  # type: ignore[operator]
    assert server["gen_ai.request.model"] == "model-1"
    assert server["gen_ai.response.finish_reasons"] == ("STOP",)
    tokens = server["gen_ai.usage.input_tokens"], server["gen_ai.usage.output_tokens"]
    assert sum(tokens) == charge.usage_counted.total()  # type: ignore[arg-type]


async def test_no_span_says_a_word_of_the_prompt_or_the_answer() -> None:
    recorded = Recorded()
    world = await World([*content("marmalade"), ValueError("obelisk")], observers=[recorded.traces]).fund(10_000)
    with pytest.raises(ValueError, match="obelisk"):
        await world.stream(request("zanzibar"))
    told = "".join(span.to_json() for span in recorded.spans())
    assert recorded.span(METHOD).status.status_code is StatusCode.ERROR
    assert not any(word in told for word in ("marmalade", "obelisk", "zanzibar"))


async def test_a_refusal_is_a_span_and_no_fault() -> None:
    recorded = Recorded()
    world = await World([STOP], observers=[recorded.traces]).fund(1)
    with pytest.raises(InsufficientCredit):
        await world.stream()
    [span] = recorded.spans()
    assert said(span)["metergate.outcome"] == "INSUFFICIENT_CREDIT"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_cancelled_call_ends_all_its_spans() -> None:
    recorded = Recorded()
    world = await World([*content("one"), asyncio.Event()], observers=[recorded.traces]).fund(10_000)
    call = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    call.cancel()
    await asyncio.wait([call])
    await world.settled()
    assert {span.name for span in recorded.spans()} == {METHOD, "admit", "dispatch", "settle"}
    assert said(recorded.span(METHOD))["metergate.close_cause"] == "CLIENT_CANCELLED"


@pytest.mark.parametrize(("context", "sample_ratio"), [(NOT_SAMPLED, 1.0), (SAMPLED, 0.0)])
async def test_what_is_not_sampled_is_not_recorded_and_backends_are_told_so(
    context: Mapping[str, str], sample_ratio: float
) -> None:
    recorded = Recorded(sample_ratio)
    world = await World([*content("one"), STOP], observers=[recorded.traces]).fund(10_000)
    await world.stream(trace_context=context)
    assert recorded.spans() == []
    sent = world.backend.requests[0].trace_context["traceparent"]
    assert sent.startswith(f"00-{TRACE_ID}-")
    assert sent.endswith("-00")


class StuckProcessor(SpanProcessor):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.is_over = threading.Event()

    def shutdown(self) -> None:
        self.go_on.wait(30)
        self.is_over.set()


async def test_a_collector_that_never_answers_does_not_keep_the_process_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS_MAX", 0.1)
    processor = StuckProcessor()
    async with asyncio.timeout(5):
        await Traces(processor, sample_ratio=1.0).close()
    assert not processor.is_over.is_set()
    processor.go_on.set()
    assert await asyncio.to_thread(processor.is_over.wait, 5)


async def test_without_a_tracer_the_apps_own_context_is_passed_on_untouched() -> None:
    world = await World([*content("one"), STOP]).fund(10_000)
    await world.stream(trace_context=SAMPLED)
    assert world.backend.requests[0].trace_context == SAMPLED

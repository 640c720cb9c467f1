"""Calls as OpenTelemetry spans: what a request waited for, as a part of the app's own trace.

Only imported where ``[traces]`` is configured: OpenTelemetry is an optional extra. Spans carry ids and numbers, no text
(L11). What is sampled is the operator's choice: an app's trace context joins a trace, it does not force one.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.core.rows import Charge
from metergate.core.usage import TokenClass
from metergate.ports import CallObserver, CallStart, Commit, Delivery
from metergate.telemetry.logs import outcome
from metergate.telemetry.printable import printable

# A collector that does not answer is given up; the spans of that batch are lost.
_EXPORT_SECONDS_MAX = 5.0

# What the end of the process waits for the collector, after all requests are settled.
CLOSE_SECONDS_MAX = 3.0

# Spans that wait for the collector: those of the last few hundred calls, some 2 MB. More are dropped.
_QUEUED_SPANS_MAX = 2_048

# Outcomes that are the gateway's or a backend's doing: by them a trace is marked as failed.
_FAULTS = frozenset(
    {
        "INTERNAL",
        "BACKEND_UNAVAILABLE",
        "STORE_UNAVAILABLE",
        "RESERVATION_NOT_OWNED",
        "DEADLINE_EXCEEDED",
        "SHUTTING_DOWN",
    }
)

_W3C = TraceContextTextMapPropagator()


class Traces:
    """Traces calls. ``sample_ratio`` (0 to 1) is the share of traces that is recorded, told by the trace's id."""

    def __init__(self, processor: SpanProcessor, *, sample_ratio: float) -> None:
        sampled = TraceIdRatioBased(sample_ratio)
        self._provider = TracerProvider(
            sampler=ParentBased(root=sampled, remote_parent_sampled=sampled),
            resource=Resource.create({"service.name": "metergate", "service.version": version("metergate")}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("metergate")

    @classmethod
    def to_collector(cls, endpoint: str, *, sample_ratio: float) -> "Traces":
        """Send spans to an OTLP collector over HTTP, in batches and from another thread."""
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS_MAX)
        return cls(BatchSpanProcessor(exporter, max_queue_size=_QUEUED_SPANS_MAX), sample_ratio=sample_ratio)

    async def close(self) -> None:
        """Send what is queued, unless that takes too long, and stop."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(done.set)

        # A thread that the process does not wait for: OpenTelemetry itself waits up to half a minute for a collector.
        threading.Thread(target=shut_down, name="traces-closing", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await done.wait()

    def call_began(self, start: CallStart) -> CallObserver:
        """Watch a call."""
        return _CallTrace(self._tracer, start)

    def committed(self, commit: Commit) -> None:
        """Say nothing: a commit serves many calls."""


class _CallTrace:
    """The spans of one call."""

    def __init__(self, tracer: Tracer, start: CallStart) -> None:
        self._tracer = tracer
        self._model_id = printable(start.model_id)
        self._began_ns = time.time_ns()
        self._span = tracer.start_span(
            f"metergate.v1.InferenceService/{start.verb}",
            _W3C.extract(start.trace_context, Context()),
            SpanKind.SERVER,
            _attributes_of(start),
            start_time=self._began_ns,
        )
        self._within = set_span_in_context(self._span, Context())
        self._dispatch: Span | None = None
        self._deliveries = 0
        self._capture_seconds = 0.0
        self._capture_seconds_max = 0.0
        self._policy_seconds: float | None = None  # None: no content policy was asked

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Record how long counting and reserving took."""
        attributes: dict[str, AttributeValue] = {
            "metergate.reservation": reservation.reservation_id,
            "metergate.prompt_tokens": prompt_tokens,
            "metergate.reserved_microcredits": reservation.reserved_microcredits,
        }
        span = self._tracer.start_span("admit", self._within, attributes=attributes, start_time=self._began_ns)
        span.end()

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """Begin an attempt; the backend's own spans are below it."""
        attributes = {"metergate.backend": backend_id, "gen_ai.request.model": self._model_id}
        self._dispatch = self._tracer.start_span("dispatch", self._within, SpanKind.CLIENT, attributes)
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._dispatch, Context()))
        return carrier

    def failed_over(self, backend_id: str, problem: str) -> None:
        """End an attempt."""
        if self._dispatch is not None:
            self._dispatch.set_status(Status(StatusCode.ERROR, f"{backend_id}: {printable(problem)}"))
            self._end_dispatch(None)

    def crossed(self, backend_id: str) -> None:
        """End an attempt."""
        if self._dispatch is not None:
            self._dispatch.add_event("kept connection closed")
            self._end_dispatch(None)

    def delivered(self, delivery: Delivery) -> None:
        """Add up; the first is an event."""
        self._deliveries += 1
        seconds = delivery.capture_seconds
        self._capture_seconds += seconds
        if seconds > self._capture_seconds_max:
            self._capture_seconds_max = seconds
        if delivery.is_first and self._dispatch is not None:
            self._dispatch.add_event("first token")

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """Add up."""
        self._policy_seconds = (self._policy_seconds or 0.0) + seconds

    def settled(self, operation: Settle, settled: Settled) -> None:
        """Record the settling, which began when its operation was made."""
        began_ns = operation.now_us * 1_000
        self._end_dispatch(began_ns)
        attributes: dict[str, AttributeValue] = {"metergate.close_cause": operation.close_cause.value}
        span = self._tracer.start_span("settle", self._within, attributes=attributes, start_time=began_ns)
        if settled.charge is not None:
            attributes.update(_attributes_of_charge(settled.charge))
            span.set_attributes(attributes)
        self._span.set_attributes(attributes)
        span.end()

    def ended(self, error: BaseException | None) -> None:
        """End what is open."""
        self._end_dispatch(None)
        told = outcome(error)
        self._span.set_attributes(
            {
                "metergate.outcome": told,
                "metergate.deliveries": self._deliveries,
                "metergate.capture_seconds": self._capture_seconds,
                "metergate.capture_seconds_max": self._capture_seconds_max,
            }
        )
        if self._policy_seconds is not None:
            self._span.set_attribute("metergate.content_policy_seconds", self._policy_seconds)
        if told in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, told))
        self._span.end()

    def _end_dispatch(self, at_ns: int | None) -> None:
        if self._dispatch is not None:
            self._dispatch.end(at_ns)
            self._dispatch = None


def _attributes_of(start: CallStart) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "rpc.system": "grpc",
        "rpc.service": "metergate.v1.InferenceService",
        "rpc.method": start.verb,
        "gen_ai.request.model": printable(start.model_id),
        "metergate.subscriber": start.caller.subscriber_id,
        "metergate.authorization": start.caller.authorization_id,
        "metergate.channel": start.caller.channel.value,
    }
    if start.caller.app_id:
        attributes["metergate.app"] = start.caller.app_id
    if start.request_id:
        attributes["metergate.request_id"] = printable(start.request_id)
        attributes["gen_ai.operation.name"] = "chat"
    return attributes


def _attributes_of_charge(charge: Charge) -> dict[str, AttributeValue]:
    usage = charge.usage_counted
    # In OpenTelemetry's words, cached tokens are a part of the input and reasoning is a part of the output.
    input_tokens = usage.get(TokenClass.PROMPT) + usage.get(TokenClass.CACHED_PROMPT)
    return {
        "metergate.charge": charge.charge_id,
        "metergate.charged_microcredits": charge.charged_microcredits,
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": usage.total() - input_tokens,
        "gen_ai.response.finish_reasons": [charge.finish_reason.value],
    }

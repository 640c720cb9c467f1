"""Watching the gateway: metrics, logs and traces."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from metergate.core.operations import (
    Settle,
    Settled,
)
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.core.rows import Authorization


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A call that came in, as its observers see it."""

    verb: str  # "StreamComplete", "Complete", "Embed" or "CountTokens"
    caller: Authorization
    model_id: str  # as the app wrote it: perhaps no model at all
    request_id: str  # "" for CountTokens
    trace_context: Mapping[str, str]  # W3C traceparent and tracestate, as the app sent them


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delta that is about to be written to the app; times in seconds."""

    characters: int
    is_first: bool
    backend_seconds: float  # how long the gateway waited for the backend; for the first: since the dispatch
    gateway_seconds: float  # from when backend and app were both ready until now; for the first: admission included
    capture_seconds: float  # the part of it that the capture took


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A transaction of the store, or a failed one; times in seconds."""

    operations: int
    seconds: float
    queued: int  # operations that wait for the next
    expired_microcredits: int  # that became breakage in it
    has_failed: bool


class CallObserver(Protocol):
    """Watches one call. No method waits or raises, and none keeps or logs what the app or the model wrote (L11)."""

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Credit was set aside."""
        ...

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """A backend is called now. Returns the trace context to send along."""
        ...

    def failed_over(self, backend_id: str, problem: str) -> None:
        """A backend failed; perhaps another is called."""
        ...

    def crossed(self, backend_id: str) -> None:
        """A backend closed a kept connection as the request was sent on it; it is called once more."""
        ...

    def delivered(self, delivery: Delivery) -> None:
        """A delta is written now; its capture is durable."""
        ...

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """The content policy was asked about a delta, for so long."""
        ...

    def settled(self, operation: Settle, settled: Settled) -> None:
        """The reservation is closed."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """The call is over: the last method to be called, and always called. None: it ended well."""
        ...


class Observer(Protocol):
    """Watches the gateway: metrics, logs and traces are observers. No method waits or raises."""

    def call_began(self, start: CallStart) -> CallObserver:
        """A call came in and was authenticated."""
        ...

    def committed(self, commit: Commit) -> None:
        """The store finished a transaction."""
        ...

"""One line a request when it ends, and one for every backend that failed. Ids and numbers only, no text (L11)."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from metergate.core.errors import MetergateError
from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.ports import CallObserver, CallStart, Commit, Delivery

logger = logging.getLogger(__name__)

# What an observer that has no trace context of its own sends along.
_NOTHING: Mapping[str, str] = {}


class RequestLog:
    """Logs calls; ``monotonic`` returns seconds of a clock that never goes back.

    ``late_seconds`` returns how long ago that happened which it is just told of: a line has the time of its event.
    """

    def __init__(self, monotonic: Callable[[], float], late_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._monotonic = monotonic
        self._late_seconds = late_seconds

    def call_began(self, start: CallStart) -> CallObserver:
        """Watch a call."""
        return _CallLog(start, self._monotonic, self._late_seconds)

    def committed(self, commit: Commit) -> None:
        """Say nothing: the store logs its failures itself, and there are a thousand commits a second."""


class _CallLog:
    """What is known of one call so far."""

    def __init__(self, start: CallStart, monotonic: Callable[[], float], late_seconds: Callable[[], float]) -> None:
        self._start = start
        self._monotonic = monotonic
        self._late_seconds = late_seconds
        self._began_seconds = monotonic()
        self._first_token_seconds: float | None = None
        self._reservation_id: str | None = None
        self._backend_id: str | None = None
        self._attempts = 0
        self._deliveries = 0
        self._settling: dict[str, Any] = {}

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Note the reservation."""
        self._reservation_id = reservation.reservation_id

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """Note the attempt."""
        self._backend_id = backend_id
        self._attempts += 1
        return _NOTHING

    def failed_over(self, backend_id: str, problem: str) -> None:
        """Log a backend's failure."""
        fields = {"backend": backend_id, "problem": problem, "attempts": self._attempts}
        self._log(logging.WARNING, "backend failed", fields)

    def crossed(self, backend_id: str) -> None:
        """Say nothing: it is no failure, and some servers do it after each answer."""

    def delivered(self, delivery: Delivery) -> None:
        """Count a delivery."""
        self._deliveries += 1
        if delivery.is_first:
            self._first_token_seconds = self._monotonic() - self._began_seconds

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """Say nothing: the request's line tells what a verdict that ended it came to."""

    def settled(self, operation: Settle, settled: Settled) -> None:
        """Note what the request was charged."""
        charge = settled.charge
        self._settling = {"close_cause": operation.close_cause.value, "charged_microcredits": 0}
        if charge is not None:
            self._settling = {
                "close_cause": charge.close_cause.value,
                "finish_reason": charge.finish_reason.value,
                "charge": charge.charge_id,
                "charged_microcredits": charge.charged_microcredits,
                "tokens": {token_class.value: tokens for token_class, tokens in charge.usage_counted},
            }

    def ended(self, error: BaseException | None) -> None:
        """Log the request."""
        if not logger.isEnabledFor(logging.INFO):
            return
        first = self._first_token_seconds
        fields = {
            "outcome": outcome(error),
            "seconds": round(self._monotonic() - self._began_seconds, 6),
            "first_token_seconds": None if first is None else round(first, 6),
            "backend": self._backend_id,
            "attempts": self._attempts,
            "deliveries": self._deliveries,
            "reservation": self._reservation_id,
        }
        self._log(logging.INFO, "request ended", fields | self._settling)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        """Write a line with what applies to this call."""
        if not logger.isEnabledFor(level):
            return
        told = {name: value for name, value in (self._identity() | fields).items() if value is not None and value != ""}
        record = logger.makeRecord(logger.name, level, "", 0, event, (), None, extra=told)
        record.created -= self._late_seconds()
        logger.handle(record)

    def _identity(self) -> dict[str, Any]:
        start, caller = self._start, self._start.caller
        return {
            "verb": start.verb,
            "request_id": start.request_id,
            "subscriber": caller.subscriber_id,
            "authorization": caller.authorization_id,
            "app": caller.app_id,
            "channel": caller.channel.value,
            "model": start.model_id,
            "trace_id": start.trace_context.get("traceparent", "")[3:35],  # after the version, before the parent's id
        }


def outcome(error: BaseException | None) -> str:
    """How a call ended, in a word: OK, the reason that the app was told, or CANCELLED."""
    if error is None:
        return "OK"
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    return error.reason if isinstance(error, MetergateError) else MetergateError.reason

"""Tells observers what happened a moment later, of many calls at once.

What an observer does for one event, in the middle of a call, takes longer than for each of many, one after the other:
in between, the processor's caches have forgotten its code.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.ports import CallObserver, CallStart, Commit, Delivery, Observer

# Much shorter than any interval at which metrics are read; and a person who watches the log does not notice it.
GATHERED_SECONDS = 0.05

# Then they are told at once: some 40 calls' events, which hold the event loop for a millisecond or two.
EVENTS_MAX = 256

# What an observer without a trace context sends along.
_NOTHING: Mapping[str, str] = {}


class EventClock:
    """The time of the event that observers are just told of."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """``monotonic`` returns seconds of a clock that never goes back."""
        self.monotonic = monotonic
        self.event_seconds: float | None = None  # None: nothing is told now

    def seconds(self) -> float:
        """When it happened."""
        return self.monotonic() if self.event_seconds is None else self.event_seconds

    def late_seconds(self) -> float:
        """How long ago that was."""
        return 0.0 if self.event_seconds is None else self.monotonic() - self.event_seconds


class Gathering:
    """An observer between the gateway and one that may be told later, which takes its times from the same ``clock``.

    Nothing is lost, and nothing is told in another order. ``tell`` must be called at the end, and before what the
    observer knows is read. Not gathered are commits, which are few; an observer of trace contexts must be told at once.
    """

    def __init__(self, observer: Observer, clock: EventClock) -> None:
        """``observer`` must not raise."""
        self._observer = observer
        self._clock = clock
        self._events: list[tuple[_GatheredCall, float, str, tuple[Any, ...]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def call_began(self, start: CallStart) -> CallObserver:
        """Watch a call."""
        call = _GatheredCall(self.note)
        self.note(call, "call_began", start)
        return call

    def committed(self, commit: Commit) -> None:
        """Tell it at once."""
        self._observer.committed(commit)

    def note(self, call: "_GatheredCall", method: str, *arguments: object) -> None:
        """Keep an event: that this method of the call's observer is to be called."""
        self._events.append((call, self._clock.monotonic(), method, arguments))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHERED_SECONDS, self.tell)
        elif len(self._events) >= EVENTS_MAX:
            self.tell()

    def tell(self) -> None:
        """Tell everything that was not told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._events = self._events, []
        clock = self._clock
        for call, clock.event_seconds, method, arguments in events:
            if method == "call_began":
                call.observer = self._observer.call_began(*arguments)
            else:
                getattr(call.observer, method)(*arguments)
        clock.event_seconds = None


class _GatheredCall:
    """One call's events, on their way."""

    __slots__ = ("_note", "observer")

    observer: CallObserver  # set when it is told that the call began

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Note it."""
        self._note(self, "admitted", reservation, prompt_tokens)

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """Note it; no trace context."""
        self._note(self, "dispatched", backend_id)
        return _NOTHING

    def failed_over(self, backend_id: str, problem: str) -> None:
        """Note it."""
        self._note(self, "failed_over", backend_id, problem)

    def crossed(self, backend_id: str) -> None:
        """Note it."""
        self._note(self, "crossed", backend_id)

    def delivered(self, delivery: Delivery) -> None:
        """Note it."""
        self._note(self, "delivered", delivery)

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """Note it."""
        self._note(self, "vetted", verdict, seconds)

    def settled(self, operation: Settle, settled: Settled) -> None:
        """Note it."""
        self._note(self, "settled", operation, settled)

    def ended(self, error: BaseException | None) -> None:
        """Note it."""
        self._note(self, "ended", error)

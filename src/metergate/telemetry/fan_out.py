"""Several observers as one. An observer that raises is reported once a call and silenced: nothing it does can cost."""

import logging
from collections.abc import Callable, Mapping, Sequence

from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.ports import CallObserver, CallStart, Commit, Delivery, Observer

logger = logging.getLogger(__name__)


class FanOut:
    """Tells every observer everything; with none, it is silent."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def call_began(self, start: CallStart) -> CallObserver:
        """A call came in: every observer watches it."""
        watching: list[CallObserver] = []
        for observer in self._observers:
            try:
                watching.append(observer.call_began(start))
            except Exception as exc:  # noqa: BLE001 - a defect of an observer must not touch the call
                _report(observer, exc)
        return FanOutCall(start, watching)

    def committed(self, commit: Commit) -> None:
        """The store finished a transaction."""
        for observer in self._observers:
            try:
                observer.committed(commit)
            except Exception as exc:  # noqa: BLE001 - a defect of an observer must not touch the store
                _report(observer, exc)


class FanOutCall:
    """Several observers of one call."""

    def __init__(self, start: CallStart, observers: list[CallObserver]) -> None:
        self._start = start
        self._observers = observers

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Credit was set aside."""
        self._tell(lambda observer: observer.admitted(reservation, prompt_tokens))

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """A backend is called; the last observer that has a trace context to send decides, else the app's is sent."""
        context: Mapping[str, str] = self._start.trace_context

        def tell(observer: CallObserver) -> None:
            nonlocal context
            context = observer.dispatched(backend_id) or context

        self._tell(tell)
        return context

    def failed_over(self, backend_id: str, problem: str) -> None:
        """A backend failed."""
        self._tell(lambda observer: observer.failed_over(backend_id, problem))

    def crossed(self, backend_id: str) -> None:
        """A backend is called once more."""
        self._tell(lambda observer: observer.crossed(backend_id))

    def delivered(self, delivery: Delivery) -> None:
        """A delta is written now: once a token, so told without ``_tell``."""
        for observer in self._observers:
            try:
                observer.delivered(delivery)
            except Exception as exc:  # noqa: BLE001 - a defect of an observer must not touch the call
                self._silence(observer, exc)

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """The content policy was asked."""
        self._tell(lambda observer: observer.vetted(verdict, seconds))

    def settled(self, operation: Settle, settled: Settled) -> None:
        """The reservation is closed."""
        self._tell(lambda observer: observer.settled(operation, settled))

    def ended(self, error: BaseException | None) -> None:
        """The call is over."""
        self._tell(lambda observer: observer.ended(error))

    def _tell(self, tell: Callable[[CallObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception as exc:  # noqa: BLE001 - a defect of an observer must not touch the call
                self._silence(observer, exc)

    def _silence(self, observer: CallObserver, exc: Exception) -> None:
        self._observers = [other for other in self._observers if other is not observer]
        _report(observer, exc)


def _report(observer: object, exc: Exception) -> None:
    # By type only: the text may hold what it observed (L11).
    logger.error("the observer %s failed: %s", type(observer).__name__, type(exc).__name__)

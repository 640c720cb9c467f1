"""An event loop whose time is virtual: it never sleeps, and the same program runs the same way each time.

Callbacks run in asyncio's own order. What differs from seed to seed are the delays that the simulated world draws.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class NothingLeftToHappen(Exception):
    """A task waits, and nothing is scheduled that could wake it, or it never ends: a deadlock."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing can run, and then at once to the next timer."""

    def __init__(self, *, seconds_max: float) -> None:
        super().__init__()
        self._selector = self
        self._seconds_max = seconds_max
        self._now_seconds = 0.0

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_seconds

    def select(self, timeout: float | None) -> list[Any]:
        """Let time pass; there is no file to wait for."""
        if timeout is None or self._now_seconds > self._seconds_max:
            raise NothingLeftToHappen
        self._now_seconds += max(timeout, 0.0)
        return []

    def run_in_executor(  # type: ignore[override] # of any executor, any function
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Run it here: a thread's own time would be another at each run."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:  # noqa: BLE001 - the future's, as a thread's is
            future.set_exception(exc)
        return future

    def _process_events(self, _events: list[Any]) -> None:
        return

    def _write_to_self(self) -> None:
        return

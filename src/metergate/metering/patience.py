"""A time limit that is renewed with every token, for less than a timer a token costs."""

import asyncio
import math
from types import TracebackType
from typing import Self


class Patience:
    """Raises TimeoutError in its block when nothing comes for too long.

    Renewing only notes a time. A timer looks at it no later than it can be over, and sets itself again if it is not.
    """

    def __init__(self, *, first_seconds: float, between_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._between_seconds = between_seconds
        self._is_limited = False
        # Nothing can be due earlier than this after a look, whatever is renewed meanwhile.
        self._look_seconds = min(first_seconds, between_seconds)
        self._due = self._loop.time() + first_seconds
        self._timer = self._loop.call_later(self._look_seconds, self._look)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self) -> None:
        """Something came: wait for the next, unless this is limited."""
        if not self._is_limited:
            self._due = self._loop.time() + self._between_seconds

    def limit(self, seconds: float) -> None:
        """Wait for no longer than this from now on, whatever comes."""
        self._is_limited = True
        self._look_seconds = seconds
        self._due = self._loop.time() + seconds
        self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look)

    def pause(self) -> None:
        """Wait for ever, until renewed."""
        self._due = math.inf

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._due:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(min(self._due, now + self._look_seconds), self._look)

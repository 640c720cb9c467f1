"""Between a backend and an app: bounded, merging while the app's side is busy, and ended exactly once."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from metergate.core.changes import changed
from metergate.core.inference import Delta
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import Usage
from metergate.metering.deltas import join, joins, length, split_off


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Why no more will be delivered."""

    cause: CloseCause
    finish_reason: FinishReason = FinishReason.INTERRUPTED
    error: Exception | None = None  # what the app is told after its receipt; None: the stream ends well


class DeltaBuffer:
    """A queue of deltas from one reader to one deliverer."""

    def __init__(
        self, *, read_ahead_characters_max: int, delivery_characters_max: int, monotonic: Callable[[], float]
    ) -> None:
        self._read_ahead_characters_max = read_ahead_characters_max
        self._delivery_characters_max = delivery_characters_max
        self._deltas: deque[Delta] = deque()
        self._characters = 0
        self._monotonic = monotonic
        self.arrival_seconds = 0.0  # when the oldest delta came that the last ``take`` returned
        self._oldest_seconds = 0.0  # when the oldest came that waits
        self._end: End | None = None
        self._is_stopped = False
        # What the two sides wait for, while they do. A future each: an asyncio.Event costs twice as much a token.
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def offer(self, delta: Delta) -> bool:
        """Append a delta if there is room, and tell whether there was: the bound may be passed by one delta."""
        if self._is_stopped:
            return True  # nobody takes it any more
        if self._characters >= self._read_ahead_characters_max:
            return False
        characters = length(delta)
        if characters:
            if not self._deltas:
                self._oldest_seconds = self._monotonic()
            self._deltas.append(delta)
            self._characters += characters
            _wake(self._arrival)
        return True

    def note_usage(self, usage: Usage) -> None:
        """Say what the backend had counted after what was put last; of no use once that was taken."""
        if self._deltas:
            self._deltas[-1] = changed(self._deltas[-1], usage=usage)

    async def put(self, delta: Delta) -> None:
        """Append a delta once there is room."""
        while not self.offer(delta):
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def finish(self, end: End) -> None:
        """End after what was put; the first end stands."""
        self._end = self._end or end
        _wake(self._arrival)

    def stop(self, end: End) -> None:
        """End at once: what was put but not taken is dropped, and so is what is still put."""
        self._is_stopped = True
        self._deltas.clear()
        self._characters = 0
        self._end = end
        _wake(self._arrival)
        _wake(self._room)

    async def take(self) -> Delta | End:
        """Return everything that waits, as one delivery of bounded size; or, when nothing waits, the end."""
        while (delta := self.take_now()) is None:
            if self._end is not None:
                return self._end
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return delta

    def take_now(self) -> Delta | None:
        """Return what ``take`` would return at once; None if nothing waits."""
        if not self._deltas:
            return None
        self.arrival_seconds = self._oldest_seconds
        delta = self._next_delivery()
        self._characters -= length(delta)
        if self._characters < self._read_ahead_characters_max:
            _wake(self._room)
        return delta

    def _next_delivery(self) -> Delta:
        taken = [self._deltas.popleft()]
        room = self._delivery_characters_max - length(taken[0])
        while self._deltas and room > 0 and joins(taken[-1], self._deltas[0]):
            taken.append(self._deltas.popleft())
            room -= length(taken[-1])
        delta = join(taken)
        if room < 0:
            delta, rest = split_off(delta, self._delivery_characters_max)
            if not rest.is_empty():
                self._deltas.appendleft(rest)
        return delta


def _wake(waiting: "asyncio.Future[None] | None") -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)

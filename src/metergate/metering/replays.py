"""Answers kept in memory for a short while: a retry after a lost connection gets its text again, free of charge.

They are never written anywhere (L11); both their number of characters and their age are bounded (L10).
"""

from collections import OrderedDict
from collections.abc import Callable

from metergate.core.inference import Delta
from metergate.metering.deltas import length


class ReplayBuffer:
    """Delivered answers by charge id, oldest dropped first."""

    def __init__(self, *, characters_max: int, seconds_max: float, monotonic: Callable[[], float]) -> None:
        self._characters_max = characters_max
        self._seconds_max = seconds_max
        self._monotonic = monotonic
        self._answers: OrderedDict[str, tuple[float, int, list[Delta]]] = OrderedDict()
        self._characters = 0

    def put(self, charge_id: str, deltas: list[Delta]) -> None:
        """Keep an answer, unless it alone is larger than the buffer."""
        # An empty answer still takes a place, so that the number of entries is bounded too.
        size = sum(length(delta) for delta in deltas) + 1
        if size > self._characters_max:
            return
        self._answers[charge_id] = (self._monotonic() + self._seconds_max, size, deltas)
        self._characters += size
        self._drop_old()

    def get(self, charge_id: str) -> list[Delta] | None:
        """Return the answer's deltas, or None if it is not kept any more."""
        self._drop_old()
        kept = self._answers.get(charge_id)
        return kept[2] if kept else None

    def clear(self) -> None:
        """Keep nothing any more."""
        self._answers.clear()
        self._characters = 0

    def _drop_old(self) -> None:
        while self._answers:
            deadline, size, _ = next(iter(self._answers.values()))
            if self._characters <= self._characters_max and self._monotonic() < deadline:
                return
            self._answers.popitem(last=False)
            self._characters -= size

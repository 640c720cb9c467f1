"""Answers kept in memory for a short while: a retry after a lost connection gets its text again, free of charge.

They are never written anywhere (L11); both their number of characters and their age are bounded (L10).
"""

from collections import OrderedDict
from collections.abc import Callable

from metergate.core.embedding import Embeddings
from metergate.core.inference import Delta
from metergate.metering.deltas import length

Answer = list[Delta] | Embeddings


class ReplayBuffer:
    """Delivered answers by charge id, oldest dropped first."""

    def __init__(self, *, characters_max: int, seconds_max: float, monotonic: Callable[[], float]) -> None:
        self._characters_max = characters_max
        self._seconds_max = seconds_max
        self._monotonic = monotonic
        self._answers: OrderedDict[str, tuple[float, int, Answer]] = OrderedDict()
        self._characters = 0

    def put(self, charge_id: str, answer: Answer) -> None:
        """Keep an answer, unless it alone is larger than the buffer."""
        # An empty answer still takes a place, so that the number of entries is bounded too.
        size = _size(answer) + 1
        if size > self._characters_max:
            return
        self._answers[charge_id] = (self._monotonic() + self._seconds_max, size, answer)
        self._characters += size
        self._drop_old()

    def deltas(self, charge_id: str) -> list[Delta] | None:
        """Return a chat's answer, or None if it is not kept any more."""
        answer = self._get(charge_id)
        return None if isinstance(answer, Embeddings) else answer

    def embeddings(self, charge_id: str) -> Embeddings | None:
        """Return an embedding's answer, or None if it is not kept any more."""
        answer = self._get(charge_id)
        return answer if isinstance(answer, Embeddings) else None

    def _get(self, charge_id: str) -> Answer | None:
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


def _size(answer: Answer) -> int:
    """Characters of text, or numbers of vectors: four bytes at most, the one and the other."""
    if isinstance(answer, Embeddings):
        return answer.numbers()
    return sum(length(delta) for delta in answer)

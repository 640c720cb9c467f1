"""What was delivered of an answer, kept for replays in as few pieces as its order allows."""

from dataclasses import replace

from metergate.core.inference import Delta
from metergate.metering.deltas import join, joins

# So many deltas are joined at a time: a small one costs a hundred times its text.
JOINED_DELTAS = 64


class Transcript:
    """A growing answer."""

    def __init__(self) -> None:
        self._pieces: list[Delta] = []
        self._recent: list[Delta] = []

    def __bool__(self) -> bool:
        return bool(self._pieces or self._recent)

    def append(self, delta: Delta) -> None:
        """Add what was delivered."""
        # Where its tokens began is not needed again, and would take more memory than the text.
        self._recent.append(replace(delta, token_starts=()) if delta.token_starts else delta)
        if len(self._recent) >= JOINED_DELTAS:
            self._pieces += _condensed(self._recent)
            self._recent.clear()

    def deltas(self) -> list[Delta]:
        """Return all of it, in order."""
        return _condensed([*self._pieces, *self._recent])


def _condensed(deltas: list[Delta]) -> list[Delta]:
    condensed: list[Delta] = []
    group: list[Delta] = []
    for delta in deltas:
        if group and not joins(group[-1], delta):
            condensed.append(join(group))
            group = []
        group.append(delta)
    return [*condensed, join(group)] if group else condensed

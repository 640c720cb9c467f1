"""Compares two streams that should say the same in the same order, in bounded memory: what was stated, what moved."""

from collections.abc import Iterator
from dataclasses import dataclass, field

# Entries that only one of the streams has named so far. In an intact ledger there are a few; a broken one must not fill
# the memory.
UNMATCHED_MAX = 10_000

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An amount that was stated and did not move so, in microcredits."""

    key: Key
    stated: int
    moved: int


@dataclass(slots=True)
class Matching:
    """What is not even yet, by key."""

    mismatches: list[Mismatch] = field(default_factory=list)  # that were given up, because there are too many
    _open: dict[Key, tuple[int, int]] = field(default_factory=dict)

    def state(self, key: Key, amount_microcredits: int) -> None:
        """One stream says so."""
        self._add(key, amount_microcredits, 0)

    def move(self, key: Key, amount_microcredits: int) -> None:
        """The other stream did so."""
        self._add(key, 0, amount_microcredits)

    def _add(self, key: Key, stated: int, moved: int) -> None:
        before_stated, before_moved = self._open.pop(key, (0, 0))
        stated, moved = before_stated + stated, before_moved + moved
        if stated == moved:
            return
        if len(self._open) < UNMATCHED_MAX:
            self._open[key] = (stated, moved)
        elif len(self.mismatches) < UNMATCHED_MAX:
            self.mismatches.append(Mismatch(key, stated, moved))

    def end(self) -> Iterator[Mismatch]:
        """Both streams are over: everything that is not even."""
        yield from self.mismatches
        for key, (stated, moved) in self._open.items():
            yield Mismatch(key, stated, moved)

"""A growing text is counted exactly by encoding only its tail again.

A *boundary* is a place where the vocabulary's pre-tokenizer always splits, whatever comes before and after. Text before
the last boundary is counted once and forgotten; the tail after it is encoded again with each piece. So after any
chunking the count equals that of the whole text at once (L7). A tail that grows long without a boundary is cut where
``long_runs`` finds a place.
"""

import sys
from collections.abc import Callable

import regex

from metergate.tokenizers.long_runs import LongRuns

# A tail from here on is looked at for a cut: longer than any line of words, and encoded in a tenth of a millisecond.
_LONG_CHARACTERS = 256
# So much of a tail is looked at at once. Long enough for several of the longest tokens; if no cut is found in it, none
# is looked for again in this tail.
_LOOKED_AT_CHARACTERS = 2048

# From this length on, a search for a boundary takes some 100 us: long enough to give up the interpreter's lock for.
# Giving it up for less costs more than the search: another thread takes it, and the event loop waits to get it back.
CONCURRENT_CHARACTERS_MIN = 4_096


class TailWindowCounter:
    """A CompletionCounter over any counting function whose boundaries are known."""

    __slots__ = ("_boundary", "_committed_tokens", "_count", "_long_characters", "_runs", "_tail", "_tail_tokens")

    def __init__(
        self, count: Callable[[str], int], boundary: regex.Pattern[str] | None, runs: LongRuns | None = None
    ) -> None:
        """``boundary`` matches at a boundary, taking no text, searching backwards; None: the tail is all text."""
        self._count = count
        self._boundary = boundary
        self._runs = runs
        self._long_characters = _LONG_CHARACTERS  # of a tail that is looked at next
        self._committed_tokens = 0
        self._tail = ""
        self._tail_tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens of all text so far, exactly. It may shrink as text is added."""
        return self._committed_tokens + self._tail_tokens

    @property
    def tail_characters(self) -> int:
        """How much text the next ``add`` encodes again."""
        return len(self._tail)

    def add(self, text: str) -> int:
        """Append text and return ``tokens``."""
        if not text:
            return self.tokens
        searched = len(self._tail)
        self._tail += text
        if self._boundary is not None:
            # The old tail was searched before; only a boundary in front of a new character can be new. Searching
            # backwards, regex does not try the place at pos itself, hence the one before.
            is_long = len(text) >= CONCURRENT_CHARACTERS_MIN
            last = self._boundary.search(self._tail, pos=max(searched - 1, 0), concurrent=is_long)
            if last is not None:
                cut = last.start()
                # Models mostly stream whole words: then what is committed is the old tail, counted already.
                self._committed_tokens += self._tail_tokens if cut == searched else self._count(self._tail[:cut])
                self._tail = self._tail[cut:]
                self._long_characters = _LONG_CHARACTERS
        if self._runs is not None and len(self._tail) >= self._long_characters:
            self._shorten(self._runs)
        self._tail_tokens = self._count(self._tail)
        return self.tokens

    def _shorten(self, runs: LongRuns) -> None:
        """Commit what can be committed of a long tail."""
        start = 0  # of the tail that is left
        while (characters := len(self._tail) - start) >= self._long_characters:
            beginning = self._tail[start : start + _LOOKED_AT_CHARACTERS]
            cut = runs.find_cut(beginning)
            if cut is not None:
                self._committed_tokens += self._count(beginning[:cut])
                start += cut
                # What a cut leaves is long already in some runs: only with more text is there another.
                was_all = characters <= _LOOKED_AT_CHARACTERS
                self._long_characters = _LONG_CHARACTERS + (characters - cut if was_all else 0)
            elif characters < _LOOKED_AT_CHARACTERS:
                self._long_characters = 2 * characters
            else:
                self._long_characters = sys.maxsize
        self._tail = self._tail[start:]

    def copy(self) -> "TailWindowCounter":
        """Return an independent counter of the same text so far, at a cost that does not grow with the text."""
        # Spelt out: copy.copy takes three times as long, and every delivery is counted on a copy.
        copied = TailWindowCounter(self._count, self._boundary, self._runs)
        copied._long_characters = self._long_characters
        copied._committed_tokens = self._committed_tokens
        copied._tail = self._tail
        copied._tail_tokens = self._tail_tokens
        return copied

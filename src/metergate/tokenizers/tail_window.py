"""A growing text is counted exactly by encoding only its tail again.

A *boundary* is a place where the vocabulary's pre-tokenizer always splits, whatever comes before and after. Text before
the last boundary is counted once and forgotten; the tail after it is encoded again with each piece. So after any
chunking the count equals that of the whole text at once (L7).
"""

from collections.abc import Callable

import regex

# From this length on, a search for a boundary takes some 100 us: long enough to give up the interpreter's lock for.
# Giving it up for less costs more than the search: another thread takes it, and the event loop waits to get it back.
CONCURRENT_CHARACTERS_MIN = 4_096


class TailWindowCounter:
    """A CompletionCounter over any counting function whose boundaries are known."""

    __slots__ = ("_boundary", "_committed_tokens", "_count", "_tail", "_tail_tokens")

    def __init__(self, count: Callable[[str], int], boundary: regex.Pattern[str] | None) -> None:
        """``boundary`` matches at a boundary, taking no text, searching backwards; None: the tail is all text."""
        self._count = count
        self._boundary = boundary
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
        self._tail_tokens = self._count(self._tail)
        return self.tokens

    def copy(self) -> "TailWindowCounter":
        """Return an independent counter of the same text so far, at a cost that does not grow with the text."""
        # Spelt out: copy.copy takes three times as long, and every delivery is counted on a copy.
        copied = TailWindowCounter(self._count, self._boundary)
        copied._committed_tokens = self._committed_tokens
        copied._tail = self._tail
        copied._tail_tokens = self._tail_tokens
        return copied

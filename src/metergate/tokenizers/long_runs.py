"""Where a long text without a boundary may be cut all the same, so that a tail never grows with the answer.

A model that repeats itself writes runs without end: one letter, one ideograph, spaces, a rule of dashes. Two kinds of
places in them are safe for whatever follows:

- the end of a piece of the pre-tokenizer between two ASCII characters that are no blanks: no pre-tokenizer looks on
  from there further than for a contraction;
- within one long piece of one class of characters, a token's end that every future encoding has too. Byte pairs are
  merged alike in any text whose neighbouring tokens are not merged with each other, so the beginning of an encoding is
  the encoding of that beginning. Whatever follows, its encoding has a token's end among the last bytes of the run, as
  many as the longest token that may begin there has; so if the encodings up to each of those bytes all have a token's
  end at one earlier place, every future one has it as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import regex

# What comes later can still change so much of what is there: a contraction has three characters, and marks that are
# composed move before up to thirty others.
_UNSETTLED_CHARACTERS_MIN = 40

# How many times the longest token is kept behind a cut, and before it, for encodings to fall into step.
_TOKENS_KEPT = 2
_TOKENS_LOOKED_AT = 3
_TOKENS_MIN = 4

# Runs of one character are the same again after each cut. The longest have 128 characters a token: several such runs.
_ENDS_KEPT = 2_048

# Where a piece that ends does so for good: also before a mark that the pre-tokenizer does not take for a letter.
_SETTLED_END = regex.compile(r"(?<=[!-~])(?=[!-~])|(?<=[\p{Ll}\p{Lo}])(?=\p{M}\p{L})")
# Marks stay with what they stand on, so that a text and its rest are composed alike.
_MARK = regex.compile(r"\p{M}")
_ANY_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")


@dataclass(frozen=True, slots=True)
class _Class:
    """Characters that every pre-tokenizer we know treats alike, in a piece of nothing else after its first one."""

    piece: regex.Pattern[str]  # the whole piece
    # What may not stand before the piece: the two could still become one.
    joining: regex.Pattern[str] | None = None


_CLASSES = (
    _Class(regex.compile(r".?[\p{Ll}\p{Lo}\p{M}]+", regex.DOTALL)),
    _Class(regex.compile(r".?[A-Za-z]+", regex.DOTALL), _ANY_LETTER_OR_MARK),
    _Class(regex.compile(r" ?[0-9]+")),
    _Class(regex.compile(r" +"), regex.compile(r"\s")),
    _Class(regex.compile(r"[ \t]{0,8}\n+"), regex.compile(r"\s")),
    _Class(regex.compile(r" ?(?:(?!')[\p{P}\p{S}])+")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceEncoder:
    """A vocabulary's two steps, each by itself."""

    split: Callable[[str], list[int]]  # where each piece of a text ends
    lengths: Callable[[bytes], list[int]]  # bytes of each token of a piece
    tokens: Iterable[bytes]  # all that are merged


class LongRuns:
    """Finds the cuts for one vocabulary."""

    def __init__(self, encoder: PieceEncoder, special_tokens: Iterable[str], compose: Callable[[str], str]) -> None:
        """``special_tokens`` are recognised in texts; ``compose`` is what is done to a text before it is split."""
        self._split = encoder.split
        self._lengths = encoder.lengths
        self._ends = lru_cache(_ENDS_KEPT)(lambda piece: (*accumulate(encoder.lengths(piece)),))
        self._compose = compose
        special = tuple(special_tokens)
        self._special = regex.compile("|".join(map(regex.escape, special))) if special else None
        # A special token that is being written may still take so much of what it follows.
        self._unsettled_characters = max([_UNSETTLED_CHARACTERS_MIN, *map(len, special)])
        # A special token in a run of its own characters can be anywhere.
        self._classes = [kind for kind in _CLASSES if not any(kind.piece.fullmatch(token) for token in special)]
        self._longest = [0] * 256  # bytes of the longest token, by its first byte
        for token in encoder.tokens:
            self._longest[token[0]] = max(self._longest[token[0]], len(token))

    def find_cut(self, text: str) -> int | None:
        """Where a text that begins at a cut, and goes on in any way, may be cut; None: nowhere that is known.

        In characters, above 0. The text before it and that after it are then counted apart.
        """
        if self._special is not None and self._special.search(text) is not None:
            return None
        if self._compose(text) != text:
            return None
        settled = len(text) - self._unsettled_characters
        ends = self._split(text)
        for end in reversed(ends):
            if end <= settled and _SETTLED_END.match(text, end):
                return end
        start = ends[-2] if len(ends) > 1 else 0
        return self._cut_within(text, start, settled)

    def _cut_within(self, text: str, start: int, settled: int) -> int | None:
        """A cut within the last piece of a text."""
        piece = text[start:]
        before = text[start - 1] if start else ""
        if not any(kind.piece.fullmatch(piece) and _stands_alone(kind, before) for kind in self._classes):
            return None
        run = text[start:settled].encode()
        longest = max(map(self._longest.__getitem__, set(run)), default=0)
        if not longest or len(run) < _TOKENS_MIN * longest:
            return None
        cuts = (start + len(run[:end].decode()) for end in sorted(self._common_ends(run, longest), reverse=True))
        return next((cut for cut in cuts if not _MARK.match(text, cut)), None)

    def _common_ends(self, run: bytes, longest: int) -> set[int]:
        """Ends of tokens, between characters, that every encoding of what the run becomes has."""
        lengths = self._lengths(run)
        if sum(lengths) != len(run):
            return set()  # bytes without a token are dropped, and their neighbours merged
        ends = [0, *accumulate(lengths)]
        first = next(i for i in reversed(range(len(ends))) if ends[i] <= len(run) - _TOKENS_LOOKED_AT * longest)
        begin = ends[first]
        kept = len(run) - _TOKENS_KEPT * longest
        # A piece that is a token by itself is not merged: so short a one is not left behind.
        common = {end for end in ends[first + 1 :] if longest < end <= kept and run[end] & 0xC0 != 0x80}
        for end in range(len(run) - longest + 1, len(run) + 1):
            others = self._ends(run[begin:end])
            # With the same first token, what comes before it goes on with them.
            if others[-1] != end - begin or others[0] != lengths[first]:
                return set()
            common &= {begin + other for other in others}
        return common


def _stands_alone(kind: _Class, before: str) -> bool:
    return not before or kind.joining is None or kind.joining.match(before) is None

"""Usage is a list of (token class, tokens). The classes are disjoint, so they add up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class TokenClass(StrEnum):
    """What kind of token was used; each has its own price."""

    PROMPT = "PROMPT"
    CACHED_PROMPT = "CACHED_PROMPT"
    COMPLETION = "COMPLETION"
    REASONING = "REASONING"


# Iterating an enumeration costs as much as rating a request.
TOKEN_CLASSES = tuple(TokenClass)


# A character has at most four bytes of UTF-8: an answer that ends within one has generated up to three tokens that have
# no text. They are reported and not counted.
TOKENS_WITHOUT_TEXT_MAX = 3

# As long as a request's stop text may be: 256 characters of at most four bytes. Its tokens, each of a byte or more, are
# generated and not delivered; backends that look for it themselves report them.
STOP_TEXT_BYTES_MAX = 1_024


class CountingSource(StrEnum):
    """Whose count a charge rests on (L9)."""

    TOKENIZER = "TOKENIZER"
    TOKEN_IDS = "TOKEN_IDS"
    BACKEND = "BACKEND"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by class: positive counts only, in the order of ``TokenClass``."""

    tokens: tuple[tuple[TokenClass, int], ...] = ()

    @classmethod
    def of(cls, tokens: Mapping[TokenClass, int]) -> Self:
        """Usage of the given counts; zeros are dropped, a negative count is a ValueError."""
        if tokens and min(tokens.values()) < 0:
            raise ValueError(f"a token count is negative: {dict(tokens)}")
        return cls(tuple([(kind, tokens[kind]) for kind in TOKEN_CLASSES if tokens.get(kind)]))

    def __iter__(self) -> Iterator[tuple[TokenClass, int]]:
        return iter(self.tokens)

    def get(self, token_class: TokenClass) -> int:
        """Tokens of one class, 0 if there are none."""
        return next((count for kind, count in self.tokens if kind is token_class), 0)

    def total(self) -> int:
        """Tokens of all classes together."""
        return sum(count for _, count in self.tokens)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage.of({kind: self.get(kind) + other.get(kind) for kind in TokenClass})

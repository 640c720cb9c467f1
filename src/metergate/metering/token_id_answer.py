"""Counting a growing answer by the token ids that its model generated (TOKEN_IDS).

What is counted is what was delivered: every id up to the last one that a delivered character came from. So an answer's
count grows with its text and never shrinks, and is the same however the ids came and the text was cut (L7). Ids after
that character (an end-of-turn token, a stop text, a character cut off by the length) delivered nothing, and are not
counted; those between two delivered texts (a tag taken away, a special token) are.
"""

from bisect import bisect_left

from metergate.core.inference import Delta


class TokenIdAnswerCounter:
    """The count of everything a model wrote so far."""

    __slots__ = ("completion_tokens", "reasoning_tokens")

    def __init__(self, completion_tokens: int = 0, reasoning_tokens: int = 0) -> None:
        self.completion_tokens = completion_tokens
        self.reasoning_tokens = reasoning_tokens

    def copy(self) -> "TokenIdAnswerCounter":
        """Return an independent counter of the same answer so far."""
        return TokenIdAnswerCounter(self.completion_tokens, self.reasoning_tokens)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        starts = delta.token_starts
        reasoning_tokens = bisect_left(starts, len(delta.reasoning_content)) if delta.reasoning_content else 0
        self.reasoning_tokens += reasoning_tokens
        self.completion_tokens += len(starts) - reasoning_tokens

    def encoded_characters(self, delta: Delta) -> int:
        """How much text ``add`` encodes for a delta: none."""
        return 0

"""Counting a growing answer.

Reasoning counts as REASONING; content and tool calls (name and arguments, each text by itself) count as COMPLETION.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto

from metergate.core.inference import Delta
from metergate.metering.deltas import length, split
from metergate.ports import CompletionCounter, Tokenizer


class TextKind(Enum):
    """A kind of text in an answer; each text is counted by itself."""

    REASONING = auto()
    CONTENT = auto()
    TOOL_NAME = auto()
    TOOL_ARGUMENTS = auto()


TextKey = tuple[TextKind, int]  # the index of the tool call, 0 for the others


def _texts(delta: Delta) -> Iterator[tuple[TextKey, str]]:
    if delta.reasoning_content:
        yield (TextKind.REASONING, 0), delta.reasoning_content
    if delta.content:
        yield (TextKind.CONTENT, 0), delta.content
    for call in delta.tool_calls:
        if call.name:
            yield (TextKind.TOOL_NAME, call.index), call.name
        if call.arguments:
            yield (TextKind.TOOL_ARGUMENTS, call.index), call.arguments


class AnswerCounter:
    """The count of everything a model wrote so far; equal for every chunking of the same answer (L7)."""

    def __init__(self, tokenizer: Tokenizer, counters: Mapping[TextKey, CompletionCounter] | None = None) -> None:
        self._tokenizer = tokenizer
        self._counters = dict(counters or {})

    @property
    def completion_tokens(self) -> int:
        """Tokens of content and tool calls."""
        return sum(counter.tokens for key, counter in self._counters.items() if key[0] is not TextKind.REASONING)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning."""
        return sum(counter.tokens for key, counter in self._counters.items() if key[0] is TextKind.REASONING)

    def copy(self) -> "AnswerCounter":
        """Return an independent counter of the same answer so far."""
        return AnswerCounter(self._tokenizer, {key: counter.copy() for key, counter in self._counters.items()})

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        for key, text in _texts(delta):
            if key not in self._counters:
                self._counters[key] = self._tokenizer.completion_counter()
            self._counters[key].add(text)

    async def add_off_loop(self, delta: Delta, counted_in_loop_characters_max: int) -> None:
        """Append a delta; in a thread if that means encoding much."""
        tail_characters = sum(self._counters[key].tail_characters for key, _ in _texts(delta) if key in self._counters)
        if length(delta) + tail_characters > counted_in_loop_characters_max:
            await asyncio.to_thread(self.add, delta)
        else:
            self.add(delta)


def longest_fit(
    before: AnswerCounter, delta: Delta, fits: Callable[[AnswerCounter], bool]
) -> tuple[Delta, AnswerCounter]:
    """Return the longest prefix of ``delta``, in whole characters, after which the answer still fits, and its counter.

    Counts of a growing text are not quite monotone, so a longer prefix may fit where bisection found none; what is
    returned always fits.
    """
    best_delta, best_counter = Delta(), before
    low, high = 0, length(delta)
    while low < high:
        middle = (low + high + 1) // 2
        prefix, _ = split(delta, middle)
        after = before.copy()
        after.add(prefix)
        if fits(after):
            low, best_delta, best_counter = middle, prefix, after
        else:
            high = middle - 1
    return best_delta, best_counter

"""Counting a growing answer.

Reasoning counts as REASONING; content and tool calls (name and arguments, each text by itself) count as COMPLETION.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum, auto
from typing import TypeVar

from metergate.core.inference import Delta
from metergate.metering.answer_count import AnswerCount
from metergate.metering.deltas import length, split
from metergate.ports import CompletionCounter, Tokenizer


class TextKind(IntEnum):
    """A kind of text in an answer; each text is counted by itself."""

    REASONING = auto()
    CONTENT = auto()
    TOOL_NAME = auto()
    TOOL_ARGUMENTS = auto()


TextKey = tuple[TextKind, int]  # the index of the tool call, 0 for the others


_CONTENT: TextKey = (TextKind.CONTENT, 0)


def _texts(delta: Delta) -> Iterable[tuple[TextKey, str]]:
    """The texts of a delta that are counted; nearly all deltas have content only."""
    if delta.tool_calls or delta.reasoning_content:
        return _all_texts(delta)
    return ((_CONTENT, delta.content),) if delta.content else ()


def _all_texts(delta: Delta) -> Iterator[tuple[TextKey, str]]:
    if delta.reasoning_content:
        yield (TextKind.REASONING, 0), delta.reasoning_content
    if delta.content:
        yield _CONTENT, delta.content
    for call in delta.tool_calls:
        if call.name:
            yield (TextKind.TOOL_NAME, call.index), call.name
        if call.arguments:
            yield (TextKind.TOOL_ARGUMENTS, call.index), call.arguments


class AnswerCounter:
    """The count of everything a model wrote so far; equal for every chunking of the same answer (L7)."""

    __slots__ = ("_counters", "_tokenizer", "completion_tokens", "reasoning_tokens")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._counters: Mapping[TextKey, CompletionCounter] = {}  # never changed: copies share it, and what is in it
        self.completion_tokens = 0  # of content and tool calls
        self.reasoning_tokens = 0

    def copy(self) -> "AnswerCounter":
        """Return an independent counter of the same answer so far."""
        copied = AnswerCounter(self._tokenizer)
        copied._counters = self._counters
        copied.completion_tokens = self.completion_tokens
        copied.reasoning_tokens = self.reasoning_tokens
        return copied

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        for key, text in _texts(delta):
            known = self._counters.get(key)
            counter = self._tokenizer.completion_counter() if known is None else known.copy()
            before = counter.tokens
            more_tokens = counter.add(text) - before
            self._counters = {**self._counters, key: counter}
            if key[0] is TextKind.REASONING:
                self.reasoning_tokens += more_tokens
            else:
                self.completion_tokens += more_tokens

    def encoded_characters(self, delta: Delta) -> int:
        """How much text ``add`` encodes for a delta; much of it belongs in a thread."""
        characters = length(delta)
        for key, _ in _texts(delta):
            counter = self._counters.get(key)
            if counter is not None:
                characters += counter.tail_characters
        return characters


Count = TypeVar("Count", bound=AnswerCount)


def longest_fit(before: Count, delta: Delta, fits: Callable[[Count], bool]) -> tuple[Delta, Count]:
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

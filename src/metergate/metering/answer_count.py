"""The count of a growing answer, whatever it rests on."""

from typing import Protocol, Self

from metergate.core.inference import Delta


class AnswerCount(Protocol):
    """The count of everything a model wrote so far; equal for every chunking of the same answer (L7)."""

    completion_tokens: int  # of content and tool calls
    reasoning_tokens: int

    def copy(self) -> Self:
        """Return an independent count of the same answer so far."""
        ...

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        ...

    async def add_off_loop(self, delta: Delta, counted_in_loop_characters_max: int) -> None:
        """Append a delta; in a thread if that takes long."""
        ...

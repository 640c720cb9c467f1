"""The count of a growing answer, whatever it rests on."""

from typing import Protocol, Self

from metergate.core.inference import Delta


class AnswerCount(Protocol):
    """The count of everything a model wrote so far; equal for every chunking of the same answer (L7)."""

    @property
    def completion_tokens(self) -> int:
        """Of content and tool calls."""
        ...

    @property
    def reasoning_tokens(self) -> int:
        """Of reasoning."""
        ...

    def copy(self) -> Self:
        """Return an independent count of the same answer so far."""
        ...

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        ...

    def encoded_characters(self, delta: Delta) -> int:
        """How much text ``add`` encodes for a delta; much of it belongs in a thread."""
        ...

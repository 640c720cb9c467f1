"""Counting, by each model's own rule."""

from collections.abc import Sequence
from typing import Protocol, Self

from metergate.core.inference import Prompt


class CompletionCounter(Protocol):
    """Counts a text that grows. After any chunking, the count equals that of the whole text at once (L7)."""

    @property
    def tokens(self) -> int:
        """Tokens of all text so far, exactly. It may shrink as text is added."""
        ...

    @property
    def tail_characters(self) -> int:
        """How much text the next ``add`` encodes again; a large one belongs in a thread."""
        ...

    def add(self, text: str) -> int:
        """Append text and return ``tokens``."""
        ...

    def copy(self) -> Self:
        """Return an independent counter of the same text so far, at a cost that does not grow with the text."""
        ...


class Tokenizer(Protocol):
    """The counting rule of one model. All methods are plain computation and safe in threads.

    A text of a model's output that cannot be counted raises an error that is no MetergateError.
    """

    @property
    def characters_per_token_max(self) -> int | None:
        """The most characters of a text that one token stands for; None if there is no bound.

        A text of n characters has at least n / this tokens. Of a prompt, a template may leave parts out.
        """
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a text as the model's own vocabulary has it, without a template."""
        ...

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of the prompt through the model's own chat template, the generation prompt included.

        RequestInvalid, naming ``messages`` or ``tools``, if the template refuses them or they cannot be counted.
        """
        ...

    def count_input(self, text: str) -> int:
        """Tokens of a text that is embedded: no template, but the special tokens that the model's file adds around it.

        RequestInvalid, whatever field it names, if it cannot be counted.
        """
        ...

    def completion_counter(self) -> CompletionCounter:
        """A new counter for one growing text."""
        ...


class TokenCodec(Tokenizer, Protocol):
    """The counting rule of a model whose backends take and give token ids."""

    @property
    def token_ids_max(self) -> int:
        """One more than the highest id of the vocabulary."""
        ...

    def encode_prompt(self, prompt: Prompt) -> Sequence[int]:
        """The ids of the prompt, as many as ``count_prompt`` says; RequestInvalid as there."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of UTF-8 that a token stands for; none of a special token, which is not shown.

        None: the vocabulary has no such id.
        """
        ...

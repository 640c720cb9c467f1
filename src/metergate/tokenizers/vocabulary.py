"""What the forms of vocabularies have in common, and the ports.Tokenizer made of one."""

from collections.abc import Callable
from dataclasses import dataclass

import regex

from metergate.core.inference import Prompt
from metergate.ports import CompletionCounter
from metergate.tokenizers.tail_window import TailWindowCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """How texts are counted."""

    count_text: Callable[[str], int]  # tokens of a model's output
    # Of a prompt; RequestInvalid if it cannot be counted exactly.
    count_rendered: Callable[[str], int]  # rendered by a template: special tokens written in it are recognised
    count_prompt_text: Callable[[str], int]  # a text of it by itself
    boundary: regex.Pattern[str] | None  # where a growing text may be cut; None: nowhere, it is counted whole each time


class VocabularyTokenizer:
    """A ports.Tokenizer: a vocabulary, and a rule that counts prompts with it."""

    def __init__(self, vocabulary: Vocabulary, count_prompt: Callable[[Prompt], int]) -> None:
        """``count_prompt`` raises RequestInvalid for a prompt it cannot count."""
        self._vocabulary = vocabulary
        self._count_prompt = count_prompt

    def count_text(self, text: str) -> int:
        """Tokens of a text as the model's own vocabulary has it, without a template."""
        return self._vocabulary.count_text(text)

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of the prompt, the generation prompt included; RequestInvalid if the template refuses it."""
        return self._count_prompt(prompt)

    def completion_counter(self) -> CompletionCounter:
        """A new counter for one growing text."""
        return TailWindowCounter(self._vocabulary.count_text, self._vocabulary.boundary)

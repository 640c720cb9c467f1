"""What the forms of vocabularies have in common, and the ports.Tokenizer made of one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import regex

from metergate.core.errors import RequestInvalid, Violation
from metergate.core.inference import Prompt
from metergate.ports import CompletionCounter
from metergate.tokenizers.long_runs import LongRuns
from metergate.tokenizers.tail_window import TailWindowCounter

# The most characters that one decomposes to, and so the most that are composed to one (UAX #15).
_DECOMPOSED_CHARACTERS_MAX = 4

_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
_ASCII_BYTES = bytes(range(0x80))


class TextUncountable(Exception):
    """The vocabulary's library cannot count this text; its regular expressions fail on some very long runs."""


Result = TypeVar("Result")


def guarded(count: Callable[[str], Result]) -> Callable[[str], Result]:
    """The same function, but whatever a library raises for a text becomes TextUncountable."""

    def counted(text: str) -> Result:
        try:
            return count(text)
        except Exception as error:
            raise TextUncountable from error
        except BaseException as error:
            # A panic of Rust's is no Exception, and its class cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise TextUncountable from error

    return counted


def characters_max(tokens: Iterable[bytes], *, composes: bool) -> int:
    """The most characters that one of these tokens stands for: those that begin in it.

    ``composes``: texts are composed before they are counted, so one character may have been several.
    """
    letter = _DECOMPOSED_CHARACTERS_MAX if composes else 1
    longest = 0
    for token in tokens:
        begun = token.translate(None, _CONTINUATION_BYTES)
        others = len(begun.translate(None, _ASCII_BYTES))
        longest = max(longest, len(begun) - others + letter * others)
    return longest


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyIds:
    """A vocabulary's tokens by their ids."""

    token_ids_max: int  # one more than the highest id
    encode_rendered: Callable[[str], Sequence[int]]  # of a prompt that a template rendered; TextUncountable
    token_bytes: Callable[[int], bytes | None]  # none of a special token, which is not shown; None: no such id


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """How texts are counted. Every count raises TextUncountable if it cannot be made."""

    count_text: Callable[[str], int]  # tokens of a model's output
    # Of a prompt; RequestInvalid if it cannot be counted exactly.
    count_rendered: Callable[[str], int]  # rendered by a template: special tokens written in it are recognised
    count_prompt_text: Callable[[str], int]  # a text of it by itself
    boundary: regex.Pattern[str] | None  # where a growing text may be cut; None: nowhere, it is counted whole each time
    runs: LongRuns | None  # where it may be cut besides; None: nowhere
    characters_per_token_max: int | None  # the most characters of a text that one token stands for; None: no bound
    ids: VocabularyIds | None = None  # None: they are not known, or not all tokens' bytes are
    added_tokens: int = 0  # that the file adds around each text that is embedded: BOS, EOS, CLS, SEP


class VocabularyTokenizer:
    """A ports.Tokenizer: a vocabulary, and a rule that counts prompts with it."""

    def __init__(self, vocabulary: Vocabulary, count_prompt: Callable[[Prompt], int]) -> None:
        """``count_prompt`` raises RequestInvalid for a prompt it cannot count."""
        self._vocabulary = vocabulary
        self._count_prompt = count_prompt

    @property
    def characters_per_token_max(self) -> int | None:
        """The most characters of a text that one token stands for; None if there is no bound."""
        return self._vocabulary.characters_per_token_max

    def count_text(self, text: str) -> int:
        """Tokens of a text as the model's own vocabulary has it, without a template; TextUncountable."""
        return self._vocabulary.count_text(text)

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of the prompt, the generation prompt included; RequestInvalid if it cannot be counted."""
        try:
            return self._count_prompt(prompt)
        except TextUncountable as error:
            raise RequestInvalid(Violation("messages", "the model's tokenizer cannot count them")) from error

    def count_input(self, text: str) -> int:
        """Tokens of a text that is embedded, with those that the file adds; RequestInvalid if it cannot be counted."""
        try:
            return self._vocabulary.count_prompt_text(text) + self._vocabulary.added_tokens
        except TextUncountable as error:
            raise RequestInvalid(Violation("inputs", "the model's tokenizer cannot count it")) from error

    def completion_counter(self) -> CompletionCounter:
        """A new counter for one growing text; adding to it may raise TextUncountable."""
        return TailWindowCounter(self._vocabulary.count_text, self._vocabulary.boundary, self._vocabulary.runs)


class VocabularyCodec(VocabularyTokenizer):
    """A ports.TokenCodec: a vocabulary whose ids are known, and a rule that renders prompts."""

    def __init__(self, vocabulary: Vocabulary, ids: VocabularyIds, render: Callable[[Prompt], str]) -> None:
        """``render`` raises RequestInvalid for a prompt that the model's template refuses."""
        super().__init__(vocabulary, lambda prompt: len(ids.encode_rendered(render(prompt))))
        self._ids = ids
        self._render = render
        self.token_bytes = ids.token_bytes

    @property
    def token_ids_max(self) -> int:
        """One more than the highest id of the vocabulary."""
        return self._ids.token_ids_max

    def encode_prompt(self, prompt: Prompt) -> Sequence[int]:
        """The ids of the prompt, the generation prompt included; RequestInvalid if it cannot be encoded."""
        try:
            return self._ids.encode_rendered(self._render(prompt))
        except TextUncountable as error:
            raise RequestInvalid(Violation("messages", "the model's tokenizer cannot encode them")) from error

"""A text that a vocabulary's library fails on is refused, and never takes the process along."""

import asyncio

import pytest
from real_vocabularies import cl100k_path, qwen_path

from metergate.core.errors import RequestInvalid
from metergate.core.inference import Message, Prompt, Role
from metergate.tokenizers import TokenizerSpec, open_tokenizer
from metergate.tokenizers.vocabulary import TextUncountable, guarded

# tiktoken's regular expressions run out of stack on so many spaces.
SPACES = " " * 1_200_000 + "x"


class PanicException(BaseException):
    """What Rust's panics become in Python: of this name, and no Exception."""


@pytest.mark.parametrize("pattern", ["cl100k_base", "qwen"])
def test_a_prompt_that_the_library_fails_on_is_an_invalid_request(pattern: str) -> None:
    path = qwen_path() if pattern == "qwen" else cl100k_path()
    spec = TokenizerSpec(kind="tiktoken", path=path, pattern=pattern, prompt_rule="openai")
    tokenizer = open_tokenizer(spec)
    with pytest.raises(RequestInvalid) as refused:
        tokenizer.count_prompt(Prompt(messages=(Message(role=Role.USER, parts=(SPACES,)),)))
    [violation] = refused.value.violations
    assert (violation.field, violation.description) == ("messages", "the model's tokenizer cannot count them")
    # A growing answer is cut within such a run: the library never has to take it whole.
    assert tokenizer.completion_counter().add(SPACES) > len(SPACES) // 1_000


@pytest.mark.parametrize("failure", [ValueError("secret"), PanicException("secret"), Exception("secret")])
def test_whatever_a_library_raises_becomes_one_error_without_its_words(failure: BaseException) -> None:
    def count(text: str) -> int:
        raise failure

    with pytest.raises(TextUncountable) as uncountable:
        guarded(count)("text")
    assert "secret" not in str(uncountable.value)
    assert uncountable.value.__cause__ is failure


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_end_of_the_process_is_no_uncountable_text(end: type[BaseException]) -> None:
    def count(text: str) -> int:
        raise end

    with pytest.raises(end):
        guarded(count)("text")

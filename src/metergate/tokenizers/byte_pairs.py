"""Counting with the ``tokenizers`` library so that no thread holds the others up."""

from collections.abc import Callable

from tokenizers import Tokenizer

# The library keeps the interpreter's lock while it encodes one text, and gives it up only for batches, which cost a
# change of threads. Texts up to this long take less than a millisecond.
_LOCKED_CHARACTERS_MAX = 1024


def token_counter(encoder: Tokenizer) -> Callable[[str], int]:
    """Count a text's tokens: special tokens written in it are recognised, none are added."""

    def count(text: str) -> int:
        if len(text) <= _LOCKED_CHARACTERS_MAX:
            return len(encoder.encode(text, add_special_tokens=False))
        return len(encoder.encode_batch_fast([text], add_special_tokens=False)[0])

    return count

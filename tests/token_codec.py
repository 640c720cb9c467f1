"""A vocabulary of a few tokens, for tests of models that are counted by their token ids."""

from collections.abc import Sequence
from itertools import pairwise

from metering_world import WordTokenizer

from metergate.core.inference import Prompt

SPECIAL = b""  # what a special token stands for: nothing that is shown


class FakeCodec(WordTokenizer):
    """Token ids are places in a list of what they stand for; prompts are counted as WordTokenizer does."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens

    @property
    def token_ids_max(self) -> int:
        return len(self._tokens)

    def encode_prompt(self, prompt: Prompt) -> Sequence[int]:
        return [0] * self.count_prompt(prompt)

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._tokens[token_id] if token_id < len(self._tokens) else None


def spelt(text: str, *cuts: int) -> list[bytes]:
    """The bytes of a text, cut at places that may lie inside characters."""
    data = text.encode()
    places = [0, *cuts, len(data)]
    return [data[start:end] for start, end in pairwise(places)]

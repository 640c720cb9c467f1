"""What acceptance tests share: gateways in this process open fast, because the vocabulary is read once."""

import json
from collections.abc import Callable
from functools import cache
from urllib.request import urlopen

import pytest

from metergate import offerings
from metergate.tokenizers.open import open_tokenizer

_open_tokenizer_once = cache(open_tokenizer)


@pytest.fixture(autouse=True)
def _vocabulary_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offerings, "open_tokenizer", _open_tokenizer_once)


@pytest.fixture
def busy_slots(llama_server: str) -> Callable[[], int]:
    """How many of the real model's slots generate, asked each time it is called."""

    def count() -> int:
        with urlopen(f"{llama_server}/slots", timeout=5) as response:
            return sum(bool(slot["is_processing"]) for slot in json.load(response))

    return count

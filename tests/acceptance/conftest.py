"""What acceptance tests share: gateways in this process open fast, because the vocabulary is read once."""

from functools import cache

import pytest

from metergate import app
from metergate.tokenizers.open import open_tokenizer

_open_tokenizer_once = cache(open_tokenizer)


@pytest.fixture(autouse=True)
def _vocabulary_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "open_tokenizer", _open_tokenizer_once)

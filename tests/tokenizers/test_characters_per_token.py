"""A text of n characters has at least n / characters_per_token_max tokens: what is hopeless need not be counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metering_world import WordTokenizer
from real_vocabularies import VOCABULARIES, cl100k_path, read_vocabulary

from metergate.tokenizers import TokenizerSpec, open_tokenizer
from metergate.tokenizers.byte_pairs import LETTERS
from metergate.tokenizers.pre_tokenizers import GPT2
from metergate.tokenizers.tokenizer_json import load_tokenizer_json
from metergate.tokenizers.vocabulary import Vocabulary

RUNS = [
    " ",
    "\n",
    "=",
    "-",
    "a",
    "天",
    "é",
    "e\u0301",
    "\u1100\u1161\u11a8",
    "ᾂ",
    "α\u0313\u0300\u0345",
    "😀",
    "ก",
    "\t",
]


# SmolLM2 has no token for some control characters: they are dropped, and so are free.
BOUNDED = [name for name in VOCABULARIES if name != "smollm2"]


@pytest.fixture(params=BOUNDED)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return read_vocabulary(request.param)


def test_no_run_of_a_character_has_fewer_tokens_than_the_bound_says(vocabulary: Vocabulary) -> None:
    assert vocabulary.characters_per_token_max is not None
    for unit in RUNS:
        for length in (1, 7, 16, 64, 128, 1000):
            text = unit * length
            for tokens in (vocabulary.count_text(text), vocabulary.count_rendered(text)):
                assert tokens * vocabulary.characters_per_token_max >= len(text)


@given(text=st.lists(st.characters(exclude_categories=["Cs"]) | st.sampled_from(RUNS), max_size=200).map("".join))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_has_fewer_tokens_than_the_bound_says(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.characters_per_token_max is not None
    assert vocabulary.count_text(text) * vocabulary.characters_per_token_max >= len(text)


@pytest.mark.parametrize(
    ("name", "characters"),
    [("o200k_base", 128), ("cl100k_base", 128), ("qwen", 128), ("deepseek", 128), ("smollm2", None)],
)
def test_the_bound_is_as_tight_as_the_longest_token(name: str, characters: int | None) -> None:
    assert read_vocabulary(name).characters_per_token_max == characters


def small_rules(**changes: Any) -> dict[str, Any]:
    entries = {token: index for index, token in enumerate([*LETTERS, "hi", "hihi"])}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": entries, "merges": [["h", "i"], ["hi", "hi"]]},
    } | changes


def added(content: str, **changes: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": 300, "content": content} | flags | changes


ONLY_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": GPT2},
    "behavior": "Isolated",
    "invert": False,
}


@pytest.mark.parametrize(
    ("changes", "characters"),
    [
        ({}, 4),
        ({"added_tokens": [added("<|longer|>")]}, 10),
        ({"normalizer": {"type": "NFC"}}, 4),
        # A token that takes the blanks beside it stands for any number of them.
        ({"added_tokens": [added("<mask>", lstrip=True)]}, None),
        ({"added_tokens": [added("<mask>", rstrip=True)]}, None),
        # What these take away, or put together, is not known.
        ({"normalizer": {"type": "Lowercase"}}, None),
        ({"pre_tokenizer": None}, None),
        ({"pre_tokenizer": ONLY_SPLIT}, None),
        # Bytes without a token are dropped.
        ({"model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "hi": 2}, "merges": [["h", "i"]]}}, None),
    ],
)
def test_a_tokenizer_json_has_a_bound_only_where_no_character_is_free(
    tmp_path: Path, changes: dict[str, Any], characters: int | None
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_rules(**changes)))
    assert load_tokenizer_json(path).characters_per_token_max == characters


def test_a_tokenizer_tells_its_vocabularys_bound() -> None:
    spec = TokenizerSpec(kind="tiktoken", path=cl100k_path(), pattern="cl100k_base", prompt_rule="openai")
    assert open_tokenizer(spec).characters_per_token_max == 128
    assert WordTokenizer().characters_per_token_max is None

"""A text that is embedded is counted by itself, with the special tokens that the model's own file adds around it."""

import json
from pathlib import Path

import pytest
from real_vocabularies import cl100k_path, deepseek_path, qwen_path, smollm2_path
from tokenizers import Tokenizer as Reference

from metergate.core.errors import RequestInvalid
from metergate.core.inference import Message, Prompt, Role
from metergate.tokenizers import TokenizerSpec, open_tokenizer

TEXTS = ("", "hello world", "请介绍一下大海。", "<|im_start|>a", "  two  blanks ", "😀 e\u0301")


def test_a_tokenizer_json_counts_as_the_reference_library_encodes(tmp_path: Path) -> None:
    rules = json.loads(deepseek_path().read_text())
    added = [token["content"] for token in rules["added_tokens"]][:2]
    ids = {token["content"]: token["id"] for token in rules["added_tokens"]}
    rules["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": added[0], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": added[1], "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in added},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(rules))
    tokenizer, reference = (
        open_tokenizer(TokenizerSpec(kind="tokenizer_json", path=path, prompt_rule="none")),
        Reference.from_file(str(path)),
    )
    for text in TEXTS:
        assert tokenizer.count_input(text) == len(reference.encode(text, add_special_tokens=True).ids)
        assert tokenizer.count_text(text) == tokenizer.count_input(text) - 2


def test_a_tiktoken_vocabulary_adds_nothing_and_takes_special_tokens_for_text() -> None:
    spec = TokenizerSpec(kind="tiktoken", path=cl100k_path(), pattern="cl100k_base", prompt_rule="none")
    tokenizer = open_tokenizer(spec)
    assert tokenizer.count_input("hello world") == 2
    assert tokenizer.count_input("<|endoftext|>") > 1


def test_a_vocabulary_that_takes_no_chats_needs_no_template_and_refuses_messages() -> None:
    tokenizer = open_tokenizer(TokenizerSpec(kind="gguf", path=smollm2_path(), prompt_rule="none"))
    with pytest.raises(RequestInvalid):
        tokenizer.count_prompt(Prompt(messages=(Message(role=Role.USER, parts=("hi",)),)))


def test_an_input_that_cannot_be_counted_exactly_is_refused() -> None:
    tokenizer = open_tokenizer(TokenizerSpec(kind="tiktoken", path=qwen_path(), pattern="qwen", prompt_rule="none"))
    with pytest.raises(RequestInvalid, match="combining marks"):
        tokenizer.count_input("e" + "\u0301" * 99)

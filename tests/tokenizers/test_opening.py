"""A tokenizer opens from its files, or says which file is wrong and why; it never counts by a rule it does not know."""

import base64
import gzip
import importlib
import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from real_vocabularies import cl100k_path, deepseek_path, qwen_path, read_vocabulary, smollm2_path
from tokenizers import Tokenizer as Reference

from metergate.core.errors import TokenizerInvalid
from metergate.core.inference import Message, Prompt, Role, Tool, ToolCall
from metergate.tokenizers import TokenizerSpec, open_tokenizer, pre_tokenizers
from metergate.tokenizers.gguf import load_gguf
from metergate.tokenizers.gguf_metadata import read_tokenizer_metadata
from metergate.tokenizers.tokenizer_json import load_tokenizer_json

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT = Prompt(messages=(Message(role=Role.USER, parts=("Hello, 世界!",)),))


# --- GGUF -----------------------------------------------------------------------------------------------------------


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case str():
            return struct.pack("<I", 8) + gguf_string(value)
        case [int(), *_]:
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
        case _:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))


BYTES = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
SMALL: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", *BYTES, "hi"],
    "tokenizer.ggml.token_type": [3, 3, *[1] * len(BYTES), 1],
    "tokenizer.ggml.merges": ["h i"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}


def write_gguf(path: Path, **changes: Any) -> Path:
    values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    body = b"".join(gguf_string(key) + gguf_value(value) for key, value in values.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + body)
    return path


def test_a_gguf_brings_its_vocabulary_and_template(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(TokenizerSpec(kind="gguf", path=write_gguf(tmp_path / "m.gguf")))
    assert tokenizer.count_text("hi!") == 2
    assert tokenizer.count_prompt(Prompt(messages=(Message(role=Role.USER, parts=("hi",)),))) == 2


@pytest.mark.parametrize(("add_bos", "add_eos", "tokens"), [(False, False, 2), (True, False, 2), (True, True, 3)])
def test_a_bos_that_the_template_wrote_is_not_added_again(
    tmp_path: Path, add_bos: bool, add_eos: bool, tokens: int
) -> None:
    changes = {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos}
    tokenizer = open_tokenizer(TokenizerSpec(kind="gguf", path=write_gguf(tmp_path / "m.gguf", **changes)))
    assert tokenizer.count_prompt(Prompt(messages=(Message(role=Role.USER, parts=("hi",)),))) == tokens


@pytest.mark.parametrize(("add_bos", "add_eos", "added"), [(False, False, 0), (True, False, 1), (True, True, 2)])
def test_a_text_that_is_embedded_has_the_special_tokens_that_the_file_adds(
    tmp_path: Path, add_bos: bool, add_eos: bool, added: int
) -> None:
    changes = {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos}
    path = write_gguf(tmp_path / "m.gguf", **changes)
    tokenizer = open_tokenizer(TokenizerSpec(kind="gguf", path=path, prompt_rule="none"))
    assert tokenizer.count_input("hi!") == 2 + added


def test_a_llama_3_vocabulary_adds_its_bos_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.chat_template": "{{ messages[0].content }}"}
    assert load_gguf(write_gguf(tmp_path / "m.gguf", **changes)).vocabulary.count_rendered("hi") == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer.ggml.pre": "tomorrow"}, "tokenizer.ggml.pre is 'tomorrow'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is None"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"tokenizer.ggml.tokens": None}, "no list tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "argument"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "merges do not fit"),
        ({"tokenizer.ggml.bos_token_id": 4_000_000}, "out of range"),
        ({"tokenizer.chat_template": None}, "no chat template"),
        ({"tokenizer.chat_template": "{% if %}"}, "does not compile"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "twice"),
    ],
)
def test_a_gguf_we_cannot_count_exactly_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = write_gguf(tmp_path / "odd.gguf", **changes)
    with pytest.raises(TokenizerInvalid, match=problem) as refused:
        open_tokenizer(TokenizerSpec(kind="gguf", path=path))
    assert refused.value.path == str(path)


def test_a_gguf_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (*range(0, 200, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerInvalid):
            read_tokenizer_metadata(path)


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("k") + struct.pack("<IIQ", 9, 8, 2**62) + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("k") + struct.pack("<IIQ", 9, 5, 2**62) + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("k") + struct.pack("<I", 99) + bytes(60),
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + gguf_string("k")
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 99,
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xfe" + bytes(60),
    ],
)
def test_a_corrupt_gguf_is_refused_quickly(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(content)
    with pytest.raises(TokenizerInvalid, match="no valid GGUF"):
        read_tokenizer_metadata(path)


# --- tiktoken ---------------------------------------------------------------------------------------------------------


def test_cl100k_counts_what_tiktoken_is_documented_to_count() -> None:
    # The cookbook's own examples.
    count = read_vocabulary("cl100k_base").count_text
    assert [count(text) for text in ("tiktoken is great!", "antidisestablishmentarianism", "2 + 2 = 4")] == [6, 6, 7]
    assert count("お誕生日おめでとう") == 9


def test_special_tokens_in_a_tiktoken_models_output_are_plain_text() -> None:
    count = read_vocabulary("cl100k_base").count_text
    assert count("<|endoftext|>") > 1
    assert count("<|im_start|><|endofprompt|>") > 2


def test_qwen_counts_composed_text_and_recognises_special_tokens_in_prompts(tmp_path: Path) -> None:
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML)
    spec = TokenizerSpec(kind="tiktoken", path=qwen_path(), pattern="qwen", chat_template_path=template)
    tokenizer = open_tokenizer(spec)
    inner = (
        tokenizer.count_text("user\nHello, 世界!") + tokenizer.count_text("\n") + tokenizer.count_text("assistant\n")
    )
    assert tokenizer.count_prompt(PROMPT) == inner + 3
    marked = unicodedata.normalize("NFD", "Où était l'été?")
    assert tokenizer.count_text(marked) == tokenizer.count_text("Où était l'été?")


def test_openais_rule_adds_three_a_message_and_three_for_the_answer() -> None:
    spec = TokenizerSpec(kind="tiktoken", path=cl100k_path(), pattern="cl100k_base", prompt_rule="openai")
    tokenizer = open_tokenizer(spec)
    count = tokenizer.count_text
    assert tokenizer.count_prompt(PROMPT) == 3 + count("user") + count("Hello, 世界!") + 3


def test_openais_rule_leaves_no_text_of_tools_and_calls_uncounted() -> None:
    spec = TokenizerSpec(kind="tiktoken", path=cl100k_path(), pattern="cl100k_base", prompt_rule="openai")
    tokenizer = open_tokenizer(spec)
    long = "word " * 500
    bare = tokenizer.count_prompt(PROMPT)
    tool = Tool(name="f", parameters_json_schema=json.dumps({"deep": {"er": long}}))
    assert tokenizer.count_prompt(Prompt(messages=PROMPT.messages, tools=(tool,))) > bare + 500
    call = ToolCall(tool_call_id="c", name="f", arguments=json.dumps([long]))
    called = Message(role=Role.ASSISTANT, tool_calls=(call,))
    assert tokenizer.count_prompt(Prompt(messages=(*PROMPT.messages, called))) > bare + 500


def rank_lines(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


ALL_BYTES = [bytes([byte]) for byte in range(256)]


def test_rank_files_may_be_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "v.tiktoken", tmp_path / "v.tiktoken.gz"
    plain.write_bytes(rank_lines([*ALL_BYTES, b"hi"]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        spec = TokenizerSpec(kind="tiktoken", path=path, pattern="o200k_base", prompt_rule="openai")
        assert open_tokenizer(spec).count_text("hi!") == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no rank"),
        (rank_lines(ALL_BYTES[:-1]), "no rank"),
        (rank_lines(ALL_BYTES) + b"!!! 256\n", "line 257"),
        (rank_lines(ALL_BYTES) + b"aGk=\n", "line 257"),
        (rank_lines(ALL_BYTES) + b"aGk= x\n", "line 257"),
        (rank_lines(ALL_BYTES) + b"aGk= 1\n", "same rank"),
    ],
)
def test_a_broken_rank_file_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "v.tiktoken"
    path.write_bytes(content)
    with pytest.raises(TokenizerInvalid, match=problem):
        open_tokenizer(TokenizerSpec(kind="tiktoken", path=path, pattern="o200k_base", prompt_rule="openai"))


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.tiktoken.gz"
    path.write_bytes(b"plain")
    with pytest.raises(TokenizerInvalid):
        open_tokenizer(TokenizerSpec(kind="tiktoken", path=path, pattern="o200k_base", prompt_rule="openai"))


@pytest.mark.parametrize("pattern", [None, "p50k_edit"])
def test_a_tiktoken_vocabulary_needs_a_pattern_we_know(pattern: str | None) -> None:
    with pytest.raises(TokenizerInvalid, match="pattern"):
        open_tokenizer(TokenizerSpec(kind="tiktoken", path=cl100k_path(), pattern=pattern, prompt_rule="openai"))


def test_a_gguf_takes_no_pattern() -> None:
    with pytest.raises(TokenizerInvalid, match="its own pattern"):
        open_tokenizer(TokenizerSpec(kind="gguf", path=smollm2_path(), pattern="qwen"))


def test_our_patterns_are_tiktokens_own() -> None:
    openai_public: Any = importlib.import_module("tiktoken_ext.openai_public")
    captured: dict[str, str] = {}

    def no_download(*arguments: Any, **named: Any) -> dict[bytes, int]:
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", no_download)
        for name in ("o200k_base", "cl100k_base"):
            captured[name] = getattr(openai_public, name)()["pat_str"]
    assert captured == {"o200k_base": pre_tokenizers.O200K, "cl100k_base": pre_tokenizers.CL100K}


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def test_a_tokenizer_json_counts_as_the_reference_does() -> None:
    reference = Reference.from_file(str(deepseek_path()))
    count = read_vocabulary("deepseek").count_text
    for text in ("Hello, 世界! 12345", "<｜User｜>hi<｜Assistant｜>", "", "a" * 3000 + "，b"):
        assert count(text) == len(reference.encode(text, add_special_tokens=False))


def test_the_template_beside_a_tokenizer_json_is_used(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(deepseek_path().read_bytes())
    config = {
        "bos_token": {"content": "<｜begin▁of▁sentence｜>"},
        "eos_token": "<｜end▁of▁sentence｜>",
        "chat_template": [
            {"name": "tool_use", "template": "x"},
            {"name": "default", "template": "{{ bos_token }}<｜User｜>{{ messages[0].content }}<｜Assistant｜>"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(TokenizerSpec(kind="tokenizer_json", path=path))
    assert tokenizer.count_prompt(PROMPT) == tokenizer.count_text("Hello, 世界!") + 3


@pytest.mark.parametrize(
    "config", [None, "{", "[]", "{}", '{"chat_template": 3}', '{"chat_template": [{"name": "rag", "template": "x"}]}']
)
def test_without_a_chat_template_a_tokenizer_json_is_refused(tmp_path: Path, config: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(deepseek_path().read_bytes())
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerInvalid, match=r"\(tokenizer_config\.json: .*; name one with chat_template_path"):
        open_tokenizer(TokenizerSpec(kind="tokenizer_json", path=path))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "Magic"}}', "\ud7ff"])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerInvalid):
        load_tokenizer_json(path)


def small_rules(**changes: Any) -> dict[str, Any]:
    vocabulary = {token: index for index, token in enumerate([*BYTES, "hi"])}
    rules: dict[str, Any] = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "i"]]},
    }
    return rules | changes


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, True),
        ({"normalizer": {"type": "Lowercase"}}, False),
        ({"pre_tokenizer": None}, False),
        ({"pre_tokenizer": PREFIXED}, False),
        ({"pre_tokenizer": BYTES_ONLY}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\p{N}"), BYTES_ONLY]}}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r".*"), BYTES_ONLY]}}, False),
    ],
)
def test_only_known_splitting_gives_a_tail_window_and_any_other_is_counted_whole(
    tmp_path: Path, changes: dict[str, Any], known: bool
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_rules(**changes)))
    vocabulary = load_tokenizer_json(path)
    assert (vocabulary.boundary is not None) is known


def test_a_tokenizer_json_that_cuts_texts_off_still_counts_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_rules()))
    assert load_tokenizer_json(path).count_text("hihihihihihihihi") == 8


@pytest.mark.parametrize("kind", ["gguf", "tokenizer_json", "tiktoken"])
def test_a_missing_file_is_named(tmp_path: Path, kind: Any) -> None:
    pattern = "qwen" if kind == "tiktoken" else None
    with pytest.raises(TokenizerInvalid, match=r"nothing\.here"):
        open_tokenizer(TokenizerSpec(kind=kind, path=tmp_path / "nothing.here", pattern=pattern))

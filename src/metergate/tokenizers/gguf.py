"""The vocabulary of a GGUF file, counted as llama.cpp's ``/tokenize`` counts: byte pairs, special tokens recognised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as BytePairs

from metergate.core.errors import TokenizerInvalid
from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.byte_pairs import (
    letters_bytes,
    letters_characters_max,
    piece_encoder,
    token_counter,
    token_encoder,
)
from metergate.tokenizers.chat_template import TemplateSource
from metergate.tokenizers.gguf_metadata import read_tokenizer_metadata
from metergate.tokenizers.long_runs import LongRuns
from metergate.tokenizers.vocabulary import Vocabulary, VocabularyIds

# llama.cpp's token types that it recognises when they are written as text.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPECIAL_TYPES = frozenset({_UNKNOWN, _CONTROL, _USER_DEFINED})
_HIDDEN_TYPES = frozenset({_UNKNOWN, _CONTROL})
# What a byte-pair vocabulary's BOS and EOS are if the file does not say.
_DEFAULT_SPECIAL_ID = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class _PreTokenizer:
    """What llama.cpp does for one value of ``tokenizer.ggml.pre``."""

    patterns: tuple[str, ...]  # applied one after another, each within the pieces of the one before
    ignore_merges: bool = False  # a piece that is a token is not merged
    add_bos: bool = False  # unless the file says otherwise


_SMOLLM = _PreTokenizer(patterns=(known.DIGIT, known.GPT2))
_GPT2 = _PreTokenizer(patterns=(known.GPT2,))
_LLAMA3 = _PreTokenizer(patterns=(known.LLAMA3_GGUF,), ignore_merges=True, add_bos=True)
_QWEN2 = _PreTokenizer(patterns=(known.QWEN2_GGUF,))
_O200K = _PreTokenizer(patterns=(known.O200K_GGUF,))
_PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "command-r": _SMOLLM,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": _PreTokenizer(patterns=(known.QWEN35_GGUF,)),
    "deepseek-v3": _PreTokenizer(patterns=(known.THREE_DIGITS, known.CJK, known.DEEPSEEK3)),
    "glm4": _PreTokenizer(patterns=(known.LLAMA3_GGUF,)),
    "gpt-4o": _O200K,
    "llama4": _O200K,
    "tekken": _PreTokenizer(patterns=(known.TEKKEN_GGUF,), ignore_merges=True, add_bos=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """A file's vocabulary and chat template."""

    vocabulary: Vocabulary
    template: TemplateSource | None  # None: the file has none


def load_gguf(path: Path) -> GgufVocabulary:
    """Read a GGUF file; TokenizerInvalid if it cannot be read, or its rule is not one we can repeat exactly (L8)."""
    metadata = read_tokenizer_metadata(path)
    try:
        return _load(metadata)
    except TokenizerInvalid:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise TokenizerInvalid(path=str(path), problem=str(error)) from error


def _load(metadata: dict[str, Any]) -> GgufVocabulary:
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ValueError(f"tokenizer.ggml.model is {model!r}; only byte pairs ('gpt2') are counted")
    rule = _PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if rule is None:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; known are {', '.join(sorted(_PRE_TOKENIZERS))}")
    tokens = _required(metadata, "tokenizer.ggml.tokens")
    types = _required(metadata, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES]
    encoder = _encoder(tokens, _required(metadata, "tokenizer.ggml.merges"), special, rule)
    bos = tokens[metadata.get("tokenizer.ggml.bos_token_id", _DEFAULT_SPECIAL_ID)]
    eos = tokens[metadata.get("tokenizer.ggml.eos_token_id", _DEFAULT_SPECIAL_ID)]
    count_text = token_counter(encoder)
    before = bos if metadata.get("tokenizer.ggml.add_bos_token", rule.add_bos) else ""
    after = eos if metadata.get("tokenizer.ggml.add_eos_token", False) else ""

    def count_rendered(text: str) -> int:
        # llama.cpp takes away what the template wrote of the tokens that it adds itself.
        inner = text.removeprefix(before).removesuffix(after)
        return bool(before) + count_text(inner) + bool(after)

    encode_text = token_encoder(encoder)
    index = {token: token_id for token_id, token in enumerate(tokens)}

    def encode_rendered(text: str) -> Sequence[int]:
        inner = encode_text(text.removeprefix(before).removesuffix(after))
        return [*([index[before]] if before else []), *inner, *([index[after]] if after else [])]

    template = metadata.get("tokenizer.chat_template")
    return GgufVocabulary(
        vocabulary=Vocabulary(
            count_text=count_text,
            count_rendered=count_rendered,
            count_prompt_text=count_text,
            boundary=known.boundary(special),
            runs=LongRuns(piece_encoder(encoder), special, compose=str),
            characters_per_token_max=letters_characters_max(tokens, composes=False),
            ids=VocabularyIds(
                token_ids_max=len(tokens), encode_rendered=encode_rendered, token_bytes=_token_bytes(tokens, types)
            ),
            added_tokens=bool(before) + bool(after),
        ),
        template=TemplateSource(text=template, bos_token=bos, eos_token=eos) if template else None,
    )


def _token_bytes(tokens: Sequence[str], types: Sequence[int]) -> Callable[[int], bytes | None]:
    """What each token is shown as; of those that llama.cpp does not show, nothing."""

    @lru_cache(maxsize=len(tokens))
    def token_bytes(token_id: int) -> bytes | None:
        if not 0 <= token_id < len(tokens):
            return None
        return b"" if types[token_id] in _HIDDEN_TYPES else letters_bytes(tokens[token_id])

    return token_bytes


def _required(metadata: dict[str, Any], key: str) -> Sequence[Any]:
    value = metadata.get(key)
    if not isinstance(value, tuple):
        raise ValueError(f"it has no list {key}")
    return value


def _encoder(tokens: Sequence[str], merges: Sequence[str], special: Sequence[str], rule: _PreTokenizer) -> BytePairs:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a token is in the vocabulary twice")
    # The space that separates a pair is the first one after the first character.
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges if (cut := merge.find(" ", 1)) > 0]
    try:
        encoder = BytePairs(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule.ignore_merges))
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns]
        encoder.pre_tokenizer = pre_tokenizers.Sequence(
            [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    except Exception as error:
        # tokenizers raises nothing narrower
        raise ValueError(f"its merges do not fit its vocabulary: {error}") from error
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return encoder

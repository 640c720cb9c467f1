"""Vocabularies as tiktoken keeps them: a file of base64 tokens and their ranks, and a named pattern."""

import base64
import binascii
import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import regex
import tiktoken

from metergate.core.errors import TokenizerInvalid
from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.composition import compose, compose_prompt
from metergate.tokenizers.long_runs import LongRuns, PieceEncoder
from metergate.tokenizers.vocabulary import Vocabulary, characters_max, guarded

_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# No known file is above 8 MB unpacked; a small compressed one must not fill the memory.
_FILE_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """What belongs to a rank file and is not in it."""

    expression: str
    special_tokens: tuple[str, ...]  # recognised in rendered prompts; in the model's output they are plain text
    composes: bool = False  # texts are brought into Unicode's composed form (NFC) first


_PATTERNS = {
    "o200k_base": _Pattern(expression=known.O200K, special_tokens=("<|endoftext|>", "<|endofprompt|>")),
    "cl100k_base": _Pattern(
        expression=known.CL100K,
        special_tokens=("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|endofprompt|>"),
    ),
    "qwen": _Pattern(expression=known.QWEN2, special_tokens=_CHATML_TOKENS, composes=True),
    "qwen3.5": _Pattern(expression=known.QWEN35, special_tokens=_CHATML_TOKENS, composes=True),
}


def load_tiktoken(path: Path, pattern_name: str) -> Vocabulary:
    """Read a ``.tiktoken`` or ``.tiktoken.gz`` file; TokenizerInvalid if it is none, or the pattern is unknown."""
    pattern = _PATTERNS.get(pattern_name)
    if pattern is None:
        known_names = ", ".join(sorted(_PATTERNS))
        raise TokenizerInvalid(path=str(path), problem=f"the pattern {pattern_name!r} is unknown; known: {known_names}")
    ranks = _read_ranks(path)
    first_id = max(ranks.values()) + 1
    try:
        encoding = tiktoken.Encoding(
            pattern_name,
            pat_str=pattern.expression,
            mergeable_ranks=ranks,
            # Their own ids do not matter for a count, and rank files do not have them.
            special_tokens={token: first_id + index for index, token in enumerate(pattern.special_tokens)},
        )
    except (ValueError, KeyError) as error:
        raise TokenizerInvalid(path=str(path), problem=str(error)) from error
    return _vocabulary(encoding, ranks, pattern)


def _piece_encoder(encoding: tiktoken.Encoding, ranks: Mapping[bytes, int], pattern: _Pattern) -> PieceEncoder:
    expression = regex.compile(pattern.expression)
    lengths = {rank: len(token) for token, rank in ranks.items()}
    # Underscored, but the one way to encode bytes that are no whole characters.
    encode = encoding._encode_single_piece  # noqa: SLF001
    return PieceEncoder(
        split=lambda text: [piece.end() for piece in expression.finditer(text)],
        lengths=lambda piece: [lengths[token] for token in encode(piece)],
        tokens=ranks,
    )


def _vocabulary(encoding: tiktoken.Encoding, ranks: Mapping[bytes, int], pattern: _Pattern) -> Vocabulary:
    special = frozenset(pattern.special_tokens)
    tokens = (*ranks, *(token.encode() for token in special))
    count_text = guarded(lambda text: len(encoding.encode_ordinary(text)))
    count_rendered = guarded(lambda text: len(encoding.encode(text, allowed_special=special, disallowed_special=())))
    plain = Vocabulary(
        count_text=count_text,
        count_rendered=count_rendered,
        count_prompt_text=count_text,
        boundary=known.boundary(()),
        runs=LongRuns(_piece_encoder(encoding, ranks, pattern), (), compose=compose if pattern.composes else str),
        characters_per_token_max=characters_max(tokens, composes=pattern.composes),
    )
    if not pattern.composes:
        return plain
    return replace(
        plain,
        count_text=lambda text: count_text(compose(text)),
        count_rendered=lambda text: count_rendered(compose_prompt(text)),
        count_prompt_text=lambda text: count_text(compose_prompt(text)),
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerInvalid(path=str(path), problem=str(error)) from error
    if len(content) > _FILE_BYTES_MAX:
        raise TokenizerInvalid(path=str(path), problem=f"it has more than {_FILE_BYTES_MAX} bytes")
    ranks = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerInvalid(
                path=str(path), problem=f"line {number} is not a base64 token and its rank"
            ) from error
    # tiktoken panics on a rank that is there twice.
    if len(set(ranks.values())) != len(ranks):
        raise TokenizerInvalid(path=str(path), problem="two tokens have the same rank")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerInvalid(path=str(path), problem="a single byte has no rank, so not every text can be counted")
    return ranks

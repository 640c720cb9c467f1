"""What each token of a ``tokenizer.json`` stands for, in bytes of UTF-8.

Two ways of writing tokens are known: byte pairs, whose letters stand for bytes, and SentencePiece's, where a low line
(U+2581) stands for a space and ``<0xE4>`` for a byte. Of any other nothing is guessed (L8).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from metergate.tokenizers.byte_pairs import letters_bytes, token_encoder
from metergate.tokenizers.vocabulary import VocabularyIds

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def ids_of(reference: Tokenizer, rules: dict[str, Any]) -> VocabularyIds | None:
    """The ids of a vocabulary; None if its tokens' bytes are not known."""
    written = _writing(rules.get("decoder"))
    if written is None:
        return None
    special = {token_id for token_id, token in reference.get_added_tokens_decoder().items() if token.special}

    token_ids_max = max(reference.get_vocab().values()) + 1

    @lru_cache(maxsize=token_ids_max)
    def token_bytes(token_id: int) -> bytes | None:
        token = reference.id_to_token(token_id)
        if token is None:
            return None
        return b"" if token_id in special else written(token)

    return VocabularyIds(
        token_ids_max=token_ids_max,
        encode_rendered=token_encoder(reference),
        token_bytes=token_bytes,
    )


def _writing(decoder: dict[str, Any] | None) -> Callable[[str], bytes] | None:
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return letters_bytes
    replaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    others = [step["type"] for step in steps if step != replaces]
    # Strip takes the first space of a whole text away; an answer goes on after its prompt, and keeps it.
    if len(others) == len(steps) - 1 and others[:2] == ["ByteFallback", "Fuse"] and others[2:] in ([], ["Strip"]):
        return _sentence_piece_bytes
    return None


def _sentence_piece_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()

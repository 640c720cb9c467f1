"""Vocabularies of byte pairs that the ``tokenizers`` library counts."""

from collections.abc import Callable, Iterable, Sequence

from tokenizers import Encoding, Tokenizer

from metergate.tokenizers.long_runs import PieceEncoder
from metergate.tokenizers.vocabulary import characters_max, guarded

# The library keeps the interpreter's lock while it encodes one text, and gives it up only for batches, which cost a
# change of threads. Texts up to this long take less than a millisecond.
_LOCKED_CHARACTERS_MAX = 1024

# How these vocabularies write each byte: printable ones as themselves, the others as the letters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(0x100) if byte not in _PRINTABLE)
LETTERS = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}


def token_counter(encoder: Tokenizer) -> Callable[[str], int]:
    """Count a text's tokens so that no thread holds the others up.

    Special tokens written in the text are recognised, none are added.
    """
    return guarded(lambda text: len(_encode(encoder, text)))


def token_encoder(encoder: Tokenizer) -> Callable[[str], Sequence[int]]:
    """The ids of what ``token_counter`` counts."""
    return guarded(lambda text: _encode(encoder, text).ids)


def _encode(encoder: Tokenizer, text: str) -> Encoding:
    if len(text) <= _LOCKED_CHARACTERS_MAX:
        return encoder.encode(text, add_special_tokens=False)
    return encoder.encode_batch_fast([text], add_special_tokens=False)[0]


def piece_encoder(encoder: Tokenizer) -> PieceEncoder:
    """The library's two steps: its pre-tokenizer, and its merging of one piece."""
    letters = {byte: letter for letter, byte in LETTERS.items()}

    def split(text: str) -> list[int]:
        return [end for _, (_, end) in encoder.pre_tokenizer.pre_tokenize_str(text)]

    def lengths(piece: bytes) -> list[int]:
        return [len(token.value) for token in encoder.model.tokenize("".join([letters[byte] for byte in piece]))]

    tokens = [letters_bytes(token) for token in encoder.get_vocab(with_added_tokens=False) if token]
    return PieceEncoder(split=split, lengths=lengths, tokens=tokens)


def letters_characters_max(tokens: Iterable[str], *, composes: bool) -> int | None:
    """The most characters that one token stands for; None if a byte has no token, which the library then drops."""
    written = set(tokens)
    if not LETTERS.keys() <= written:
        return None
    return characters_max(map(letters_bytes, written), composes=composes)


def letters_bytes(token: str) -> bytes:
    """What a token is written for; special ones are written as they are."""
    try:
        return bytes([LETTERS[letter] for letter in token])
    except KeyError:
        return token.encode()

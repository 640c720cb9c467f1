"""The families' own libraries, and the comparison of our counts with theirs."""

import base64
import gzip
import random
import unicodedata
from collections.abc import Callable

import tiktoken
import tokenizers
from fuzz_texts import chunkings, texts
from real_vocabularies import cl100k_path, deepseek_path, o200k_path, qwen35_path, qwen_path, read_vocabulary

from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.tail_window import TailWindowCounter

Reference = Callable[[str], int]

REFERENCES = ("o200k_base", "cl100k_base", "qwen", "qwen3.5", "deepseek")


def reference(name: str) -> Reference:
    """The family's own library over its own files, with nothing of ours but the pattern's text."""
    match name:
        case "deepseek":
            library = tokenizers.Tokenizer.from_file(str(deepseek_path()))
            return lambda text: len(library.encode(text, add_special_tokens=False))
        case "o200k_base":
            return _tiktoken(gzip.decompress(o200k_path().read_bytes()), known.O200K)
        case "cl100k_base":
            return _tiktoken(gzip.decompress(cl100k_path().read_bytes()), known.CL100K)
        case "qwen":
            return _normalized(_tiktoken(qwen_path().read_bytes(), known.QWEN2))
        case _:
            return _normalized(_tiktoken(qwen35_path().read_bytes(), known.QWEN35))


def _tiktoken(content: bytes, pattern: str) -> Reference:
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    library = tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(library.encode_ordinary(text))


def _normalized(count: Reference) -> Reference:
    return lambda text: count(unicodedata.normalize("NFC", text))


def compare(
    name: str, count_reference: Reference, number: int, seed: int, step: Callable[[], None] = lambda: None
) -> None:
    """Count so many texts whole and in pieces, at a random place in the middle too; AssertionError if one differs."""
    vocabulary = read_vocabulary(name)
    draw = random.Random(seed)
    for index, text in enumerate(texts(seed, number)):
        expected = count_reference(text)
        assert vocabulary.count_text(text) == expected, text
        looked_at = draw.randrange(len(text) + 1)
        for pieces in chunkings(seed + index, text):
            counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
            characters = 0
            for piece in pieces:
                counter.add(piece)
                characters += len(piece)
                if characters >= looked_at > characters - len(piece):
                    assert counter.tokens == count_reference(text[:characters]), text[:characters]
            assert counter.tokens == expected, (text, [len(piece) for piece in pieces])
        step()

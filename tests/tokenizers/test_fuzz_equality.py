"""Counts equal the reference tokenizer's, for texts of every kind, whole and in any pieces.

A few dozen texts a vocabulary run each time; ``pytest -m soak tests/tokenizers`` runs 20,000.
"""

import base64
import gzip
import json
import random
import unicodedata
import urllib.request
from collections.abc import Callable

import pytest
import regex
import tiktoken
import tokenizers
from fuzz_texts import chunkings, texts
from real_vocabularies import cl100k_path, deepseek_path, o200k_path, qwen35_path, qwen_path, read_vocabulary

from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.tail_window import TailWindowCounter

Reference = Callable[[str], int]

FEW, MANY = 60, 20_000
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


def compare(name: str, count_reference: Reference, number: int, seed: int) -> None:
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


@pytest.mark.parametrize("name", REFERENCES)
def test_a_few_texts_count_as_the_reference_counts_them(name: str) -> None:
    compare(name, reference(name), FEW, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", REFERENCES)
def test_many_texts_count_as_the_reference_counts_them(name: str) -> None:
    compare(name, reference(name), MANY, seed=2)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_many_texts_count_as_the_models_own_server_counts_them(llama_server: str) -> None:
    def count(text: str) -> int:
        body = json.dumps({"content": text, "parse_special": True}).encode()
        request = urllib.request.Request(f"{llama_server.removesuffix('/v1')}/tokenize", body)
        with urllib.request.urlopen(request, timeout=50) as response:
            return len(json.load(response)["tokens"])

    compare("smollm2", count, MANY, seed=3)


@pytest.mark.parametrize("run", ["a", "啊", " ", "\n", "=", "7", "😀", "aB", "Q", "か"])
@pytest.mark.parametrize("name", [*REFERENCES, "smollm2"])
def test_the_tail_of_a_long_run_stays_short(name: str, run: str) -> None:
    vocabulary = read_vocabulary(name)
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
    text, longest = run * 3_000, 0
    for start in range(0, len(text), 3):
        counter.add(text[start : start + 3])
        longest = max(longest, counter.tail_characters)
    assert counter.tokens == vocabulary.count_text(text)
    # Several of the longest tokens must be seen at once; those of spaces have 128 characters.
    assert longest <= 1_100


def test_the_pieces_that_cuts_rest_on_are_the_reference_librarys() -> None:
    """tiktoken splits with an engine of its own; where it splits is seen in what it makes of each piece."""
    content = gzip.decompress(cl100k_path().read_bytes())
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    library = tiktoken.Encoding("reference", pat_str=known.CL100K, mergeable_ranks=ranks, special_tokens={})
    pattern = regex.compile(known.CL100K)
    for text in texts(5, FEW):
        pieces = [piece[0] for piece in pattern.finditer(text)]
        assert "".join(pieces) == text
        assert sum(len(library.encode_ordinary(piece)) for piece in pieces) == len(library.encode_ordinary(text)), text

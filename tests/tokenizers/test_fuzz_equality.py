"""Counts equal the reference tokenizer's, for texts of every kind, whole and in any pieces.

A few dozen texts a vocabulary run each time; ``make soak ARGUMENTS="--only counting"`` compares 20,000.
"""

import base64
import gzip

import pytest
import regex
import tiktoken
from counting_references import REFERENCES, compare, reference
from fuzz_texts import texts
from real_vocabularies import cl100k_path, read_vocabulary

from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.tail_window import TailWindowCounter

TEXTS = 60


@pytest.mark.parametrize("name", REFERENCES)
def test_a_few_texts_count_as_the_reference_counts_them(name: str) -> None:
    compare(name, reference(name), TEXTS, seed=1)


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
    for text in texts(5, 300):
        pieces = [piece[0] for piece in pattern.finditer(text)]
        assert "".join(pieces) == text
        assert sum(len(library.encode_ordinary(piece)) for piece in pieces) == len(library.encode_ordinary(text)), text

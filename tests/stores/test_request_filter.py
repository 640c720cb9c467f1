"""The filter of charged requests: what was added is never denied, nearly all else is, and nobody chooses collisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.books import RequestKey
from metergate.stores.sqlite.request_filter import CHUNK_BYTES, RequestFilter

KEY = b"k" * 32

requests = st.lists(st.tuples(*[st.text("ab,1é", min_size=1, max_size=3)] * 3), max_size=40)


def whole(key: bytes = KEY) -> RequestFilter:
    made = RequestFilter(key, 1)
    made.is_whole = True
    return made


@given(early=requests, late=requests, others=requests)
def test_what_was_charged_is_never_denied_whether_added_or_stored(
    early: list[RequestKey], late: list[RequestKey], others: list[RequestKey]
) -> None:
    """What is stored comes beside what was added meanwhile, and takes away nothing."""
    first, second = whole(), whole()
    first.add(early)
    second.add(late)
    for number in range(first.chunks):
        second.add_chunk(number, first.chunk(number))
    charged = {*early, *late}
    assert set(second.perhaps_charged(charged)) == charged
    assert set(second.perhaps_charged({*charged, *others})) >= charged


@given(requests=requests)
def test_until_it_is_whole_it_denies_nothing(requests: list[RequestKey]) -> None:
    assert RequestFilter(KEY, 1).perhaps_charged(requests) == requests


def test_nearly_every_other_request_is_denied() -> None:
    """Of 40 bits a charge; its figures for fewer are in the configuration's schema."""
    made = whole()
    made.add(("s", "a", f"request-{number}") for number in range(200_000))
    assert len(made.perhaps_charged([("s", "a", f"other-{number}") for number in range(20_000)])) < 50


@pytest.mark.parametrize("other", [("ab", "c", "d"), ("a", "bcd", ""), ("", "abc", "d"), ("a", "b", "cd")])
def test_ids_that_are_the_same_text_together_are_not_the_same_request(other: tuple[str, str, str]) -> None:
    made = whole()
    made.add([("a", "bc", "d")])
    assert made.perhaps_charged([other, ("a", "bc", "d")]) == [("a", "bc", "d")]


def test_which_bits_a_request_has_is_the_ledgers_secret() -> None:
    """Else an app could make requests that are looked for in vain, or that hide among others'."""
    first, second = whole(), whole(b"other" * 6)
    for made in (first, second):
        made.add([("s", "a", "request")])
    parts = [[made.chunk(number) for number in range(made.chunks)] for made in (first, second)]
    assert parts[0] != parts[1]
    assert all(len(chunk) == CHUNK_BYTES for chunk in parts[0])
    assert sum(int.from_bytes(chunk, "little").bit_count() for chunk in parts[0]) in range(2, 5)

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.errors import RequestInvalid
from metergate.edges.pages import PageTokens, page_rows, read_time_us
from metergate.edges.responses import timestamp
from metergate.edges.violations import Violations

TOKENS = PageTokens(b"k" * 32)


@pytest.mark.parametrize(("page_size", "rows"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_has_the_promised_number_of_rows(page_size: int, rows: int) -> None:
    assert page_rows(page_size) == rows


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="page_size"):
        page_rows(-1)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_a_token_gives_its_cursor_back_to_the_same_query(cursor: str) -> None:
    assert TOKENS.read(TOKENS.write(cursor, "charges", "zhang"), "charges", "zhang") == cursor


def test_the_first_page_has_no_token_and_the_last_gives_none() -> None:
    assert TOKENS.read("", "charges") is None
    assert TOKENS.write(None, "charges") == ""


def test_a_token_of_another_query_or_another_gateway_is_refused() -> None:
    token = TOKENS.write("42", "charges", "zhang")
    for tokens, query in [
        (TOKENS, ("charges", "li")),
        (TOKENS, ("transfers", "zhang")),
        (PageTokens(b"x"), ("charges", "zhang")),
    ]:
        with pytest.raises(RequestInvalid, match="page_token"):
            tokens.read(token, *query)


def test_a_token_with_any_one_character_changed_is_refused() -> None:
    token = TOKENS.write("42", "charges")
    for position, character in enumerate(token):
        for other in "AQg_w":
            if other != character:
                with pytest.raises(RequestInvalid, match="page_token"):
                    TOKENS.read(token[:position] + other + token[position + 1 :], "charges")


@given(st.text(min_size=1, max_size=60))
def test_any_text_that_is_no_token_is_refused_as_invalid(text: str) -> None:
    with pytest.raises(RequestInvalid, match="page_token"):
        TOKENS.read(text, "charges")


@pytest.mark.parametrize("suffix", ["\n", " ", "=", "!", "A" * 2000])
def test_a_token_with_something_added_is_refused(suffix: str) -> None:
    with pytest.raises(RequestInvalid, match="page_token"):
        TOKENS.read(TOKENS.write("42", "charges") + suffix, "charges")


@pytest.mark.parametrize(
    ("moment", "time_us"),
    [
        (Timestamp(seconds=1, nanos=0), 1_000_000),
        (Timestamp(seconds=1, nanos=1), 1_000_001),
        (Timestamp(seconds=1, nanos=1000), 1_000_001),
        (Timestamp(seconds=-1, nanos=999_999_999), 0),
    ],
)
def test_a_time_between_two_microseconds_counts_as_the_later(moment: Timestamp, time_us: int) -> None:
    violations = Violations()
    assert read_time_us(moment, "filter.start_time", violations) == time_us
    violations.check()


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_a_time_survives_the_wire(time_us: int) -> None:
    assert read_time_us(timestamp(time_us), "t", Violations()) == time_us


@pytest.mark.parametrize(
    "moment",
    [
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(nanos=-1),
        Timestamp(nanos=10**9),
    ],
)
def test_what_is_no_time_is_refused(moment: Timestamp) -> None:
    violations = Violations()
    read_time_us(moment, "filter.start_time", violations)
    with pytest.raises(RequestInvalid, match=r"filter\.start_time"):
        violations.check()

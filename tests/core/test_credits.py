"""Credits are integers, read and written for people exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.credits import AMOUNT_MICROCREDITS_MAX, format_credits, parse_credits


@given(st.integers(min_value=-AMOUNT_MICROCREDITS_MAX, max_value=AMOUNT_MICROCREDITS_MAX))
def test_what_is_formatted_is_parsed_back(amount: int) -> None:
    assert parse_credits(format_credits(amount).replace(",", "")) == amount


@pytest.mark.parametrize(
    ("amount", "text"), [(5_250_000, "5.250000"), (-1, "-0.000001"), (1_234_000_000, "1,234.000000")]
)
def test_credits_are_shown_with_all_their_decimals(amount: int, text: str) -> None:
    assert format_credits(amount) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "1e",
        "nan",
        "inf",
        "0.0000001",
        "1e30",
        "1,000",
        "1e999999",
        "1e-999999",
        "sNaN",
        "1." + "0" * 60 + "1",
        "9" * 100_000,
    ],
)
def test_what_is_no_amount_of_credits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_credits(text)

"""Usage times price, rounded up once (L7), at the one card in effect."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.errors import RateCardInvalid
from metergate.core.rating import TOKENS_PER_PRICE, RateCard, check_schedule, current_card, rate_ceil
from metergate.core.usage import TokenClass, Usage

COUNTS = st.dictionaries(st.sampled_from(TokenClass), st.integers(0, 10**7))
PRICES = st.fixed_dictionaries({kind: st.integers(0, 10**9) for kind in TokenClass})


def card(name: str = "card", start: int = 0, end: int | None = None, prices: Mapping[TokenClass, int] = {}) -> RateCard:
    return RateCard(
        rate_card_id=name, model_id="m", effective_time_us=start, expire_time_us=end, prices=tuple(prices.items())
    )


@given(COUNTS, PRICES)
def test_the_charge_is_the_exact_cost_rounded_up_once(
    counts: dict[TokenClass, int], prices: dict[TokenClass, int]
) -> None:
    exact = sum((Fraction(count * prices[kind], TOKENS_PER_PRICE) for kind, count in counts.items()), Fraction(0))
    assert rate_ceil(Usage.of(counts), card(prices=prices)) == ceil(exact)


@given(st.lists(st.integers(0, 1000), max_size=20), PRICES)
def test_chunking_never_changes_the_price(chunks: list[int], prices: dict[TokenClass, int]) -> None:
    """Captures take differences of cumulative costs: their sum is the cost of the whole."""
    priced, captured, total = card(prices=prices), 0, 0
    for chunk in chunks:
        total += chunk
        captured += rate_ceil(Usage.of({TokenClass.COMPLETION: total}), priced) - captured
    assert captured == rate_ceil(Usage.of({TokenClass.COMPLETION: sum(chunks)}), priced)


def test_a_class_without_a_price_is_refused_rather_than_free() -> None:
    with pytest.raises(RateCardInvalid):
        rate_ceil(Usage.of({TokenClass.REASONING: 1}), card(prices={TokenClass.PROMPT: 1}))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Usage.of({TokenClass.PROMPT: -1})


@given(COUNTS, COUNTS)
def test_usages_add_up_class_by_class(one: dict[TokenClass, int], other: dict[TokenClass, int]) -> None:
    both = Usage.of(one) + Usage.of(other)
    assert all(both.get(kind) == one.get(kind, 0) + other.get(kind, 0) for kind in TokenClass)
    assert both.total() == sum(one.values()) + sum(other.values())


def test_the_card_in_effect_is_the_last_that_started_unless_it_ended() -> None:
    ordered = check_schedule([card("b", 20, 30), card("a", 10), card("c", 40)])
    found = {now: current_card(ordered, now) for now in (9, 10, 19, 20, 29, 30, 40)}
    names = {now: None if row is None else row.rate_card_id for now, row in found.items()}
    assert names == {9: None, 10: "a", 19: "a", 20: "b", 29: "b", 30: None, 40: "c"}


@pytest.mark.parametrize("cards", [[card("a", 5), card("b", 5)], [card("a", 5, 20), card("b", 10)], [card("a", 5, 5)]])
def test_overlapping_and_backward_cards_are_refused(cards: list[RateCard]) -> None:
    with pytest.raises(RateCardInvalid):
        check_schedule(cards)

"""Rating turns usage into microcredits: exact, integer, rounded up once a request (L7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metergate.core.errors import RateCardInvalid
from metergate.core.usage import TokenClass, Usage

# Prices are microcredits per this many tokens, so that one token can cost less than a microcredit.
TOKENS_PER_PRICE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RateCard:
    """The immutable prices of one model from ``effective_time_us`` on."""

    rate_card_id: str
    model_id: str
    effective_time_us: int  # microseconds since the epoch, UTC; inclusive
    expire_time_us: int | None  # exclusive; None: until the model's next card takes effect
    prices: tuple[tuple[TokenClass, int], ...]  # microcredits per 1,000,000 tokens, every class priced, none negative

    def price(self, token_class: TokenClass) -> int:
        """Microcredits per 1,000,000 tokens; RateCardInvalid for a class without a price (L8)."""
        for kind, price in self.prices:
            if kind is token_class:
                return price
        raise RateCardInvalid(rate_card_id=self.rate_card_id, problem=f"it has no price for {token_class}")


def rate_ceil(usage: Usage, card: RateCard) -> int:
    """Microcredits that this usage costs: the exact cost, rounded up once."""
    exact = 0
    for kind, count in usage.tokens:
        exact += count * card.price(kind)
    return round_up(exact)


def round_up(exact: int) -> int:
    """Microcredits of an exact cost (tokens x price), rounded up: the only rounding there is."""
    return -(-exact // TOKENS_PER_PRICE)


def check_schedule(cards: Sequence[RateCard]) -> tuple[RateCard, ...]:
    """The cards of one model in order of effect; RateCardInvalid if one ends before it starts or two overlap."""
    ordered = tuple(sorted(cards, key=lambda card: card.effective_time_us))
    for card in ordered:
        if card.expire_time_us is not None and card.expire_time_us <= card.effective_time_us:
            raise RateCardInvalid(rate_card_id=card.rate_card_id, problem="it expires before it takes effect")
    for earlier, later in pairwise(ordered):
        ends_late = earlier.expire_time_us is not None and earlier.expire_time_us > later.effective_time_us
        if ends_late or earlier.effective_time_us == later.effective_time_us:
            raise RateCardInvalid(rate_card_id=later.rate_card_id, problem=f"it overlaps {earlier.rate_card_id}")
    return ordered


def current_card(ordered: Sequence[RateCard], now_us: int) -> RateCard | None:
    """The card in effect at ``now_us`` of cards in order of effect, or None if the model has no price then."""
    started = [card for card in ordered if card.effective_time_us <= now_us]
    if not started:
        return None
    card = started[-1]
    return card if card.expire_time_us is None or now_us < card.expire_time_us else None

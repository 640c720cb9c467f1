"""What was charged, or captured so far, is the price of its usage; how a backend's report differs is flagged right."""

from collections.abc import Mapping

from metergate.core.audit.findings import DifferenceKind, Findings
from metergate.core.errors import RateCardInvalid
from metergate.core.rating import RateCard, rate_ceil
from metergate.core.reservation import CloseCause
from metergate.core.rows import Charge, FinishReason
from metergate.core.usage import STOP_TEXT_BYTES_MAX, TOKENS_WITHOUT_TEXT_MAX, TokenClass, Usage

# The widest tolerance of a model in tokens: reports that differ by more are flagged whatever the model.
USAGE_TOLERANCE_TOKENS_MAX = 1_000


class Pricing:
    """Checks prices by the rate cards that were ever recorded, by id."""

    def __init__(self, rate_cards: Mapping[str, RateCard], findings: Findings) -> None:
        self._rate_cards = rate_cards
        self._findings = findings

    def check(self, name: str, rate_card_id: str, model_id: str, usage: Usage, amount: int) -> None:
        """What was charged, or captured so far, is the price of its usage at the model's own rate card."""
        card = self._rate_cards.get(rate_card_id)
        if card is None:
            self._findings.say(DifferenceKind.PRICE, name, f"names the rate card {rate_card_id}, unknown")
            return
        if card.model_id != model_id:
            finding = f"is for {model_id} at the rate card {card.rate_card_id} of {card.model_id}"
            self._findings.say(DifferenceKind.PRICE, name, finding)
        try:
            price = rate_ceil(usage, card)
        except RateCardInvalid as exc:
            self._findings.say(DifferenceKind.PRICE, name, f"cannot be rated: {exc}")
            return
        if price != amount:
            self._findings.say(DifferenceKind.PRICE, name, f"is of {amount} microcredits, its usage costs {price}")


def is_flag_right(charge: Charge) -> bool:
    """Whether usage_mismatch can be as it is, whatever tolerance the model had."""
    if charge.usage_reported is None:
        return not charge.usage_mismatch
    counted, reported = _prompt_and_answer(charge.usage_counted), _prompt_and_answer(charge.usage_reported)
    prompt, answer = (other - one for one, other in zip(counted, reported, strict=True))
    if charge.close_cause is not CloseCause.FINISHED:  # of an answer that was cut short, a report says nothing
        return not charge.usage_mismatch
    if charge.usage_mismatch:
        return (prompt, answer) != (0, 0)
    if answer > 0 and charge.finish_reason is FinishReason.LENGTH:
        answer = 0  # if the gateway cut the answer, the report is of more than was delivered
    answer -= min(max(answer, 0), TOKENS_WITHOUT_TEXT_MAX + STOP_TEXT_BYTES_MAX)
    return max(abs(prompt), abs(answer)) <= USAGE_TOLERANCE_TOKENS_MAX


def _prompt_and_answer(usage: Usage) -> tuple[int, int]:
    prompt = usage.get(TokenClass.PROMPT) + usage.get(TokenClass.CACHED_PROMPT)
    return prompt, usage.total() - prompt

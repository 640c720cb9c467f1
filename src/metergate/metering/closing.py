"""Settling: the one way out of every request (L6)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metergate.core.inference import Delta
from metergate.core.operations import Replayed, Settle, Settled, Settlement
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission, Receipt
from metergate.core.reservation import CloseCause, Reservation
from metergate.core.rows import Attempt, Charge, FinishReason
from metergate.core.usage import TOKENS_WITHOUT_TEXT_MAX, TokenClass, Usage
from metergate.metering.buffer import End
from metergate.metering.plan import PricedPrompt
from metergate.metering.services import Services
from metergate.ports import Sink

# A request that ended in one of these ways before anything was delivered is charged its prompt all the same, if a
# backend was called: it did the work (an empty answer is an answer too). Other ends before the first delivery charge
# nothing.
CHARGED_WITHOUT_DELIVERY = frozenset(
    {
        CloseCause.FINISHED,
        CloseCause.CREDIT_EXHAUSTED,
        CloseCause.CAP_REACHED,
        CloseCause.CREDIT_LIMIT_REACHED,
        CloseCause.CONTENT_BLOCKED,
        CloseCause.CLIENT_CANCELLED,
        CloseCause.DEADLINE_EXCEEDED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a request came to."""

    end: End
    usage: Usage | None  # what to charge; None: nothing
    usage_reported: Usage | None
    report_is_whole: bool  # the backend ended its answer: what it reported is of all that it made
    stop: Sequence[str]  # texts that the app asked it to stop at
    attempts: tuple[Attempt, ...]
    captures_at_settling: bool  # capture what is charged in the same commit, as far as it is not captured yet


def settle_operation(services: Services, priced: PricedPrompt, reservation: Reservation, outcome: Outcome) -> Settle:
    """Return the operation that closes a reservation."""
    return Settle(
        reservation_id=reservation.reservation_id,
        subscriber_id=reservation.subscriber_id,
        owner=reservation.owner,
        close_cause=outcome.end.cause,
        settlement=_settlement(services, priced, outcome),
        now_us=services.clock.now_us(),
    )


def was_settled_by(operation: Settle, settled: Settled) -> bool:
    """Whether this operation closed the reservation, rather than a recovery before it."""
    asked = None if operation.settlement is None else operation.settlement.charge_id
    return asked == (None if settled.charge is None else settled.charge.charge_id)


def _settlement(services: Services, priced: PricedPrompt, outcome: Outcome) -> Settlement | None:
    if outcome.usage is None:
        return None
    usage = _with_cached_prompt(outcome.usage, outcome.usage_reported, priced)
    charged_microcredits = rate_ceil(usage, priced.rate_card)
    return Settlement(
        charge_id=services.new_id(),
        charged_microcredits=charged_microcredits,
        usage_counted=usage,
        usage_reported=outcome.usage_reported,
        usage_mismatch=_is_mismatch(usage, outcome, priced.model.usage_tolerance_tokens),
        attempts=outcome.attempts,
        finish_reason=outcome.end.finish_reason,
        captured_microcredits=charged_microcredits if outcome.captures_at_settling else 0,
    )


def _with_cached_prompt(counted: Usage, reported: Usage | None, priced: PricedPrompt) -> Usage:
    """Return the counted usage with what the backend served from its prompt cache told apart, if cheaper (L9)."""
    is_backends_count = priced.prompt_tokens_estimated is not None
    if reported is None or is_backends_count:
        return counted
    prompt = counted.get(TokenClass.PROMPT)
    cached = min(reported.get(TokenClass.CACHED_PROMPT), prompt)
    tokens = dict(counted) | {TokenClass.PROMPT: prompt - cached, TokenClass.CACHED_PROMPT: cached}
    split = Usage.of(tokens)
    return split if rate_ceil(split, priced.rate_card) <= rate_ceil(counted, priced.rate_card) else counted


def _is_mismatch(counted: Usage, outcome: Outcome, tolerance_tokens: int) -> bool:
    """Whether the report of a whole answer differs by more than the tolerance: the prompt's tokens, or the answer's.

    A report may be the higher one by as much more as the answer's end can have generated without text.
    """
    reported = outcome.usage_reported
    if reported is None or not outcome.report_is_whole or outcome.end.cause is not CloseCause.FINISHED:
        return False
    prompt_classes = (TokenClass.PROMPT, TokenClass.CACHED_PROMPT)

    def prompt(usage: Usage) -> int:
        return sum(usage.get(token_class) for token_class in prompt_classes)

    def answer(usage: Usage) -> int:
        return usage.total() - prompt(usage)

    prompt_difference = prompt(reported) - prompt(counted)
    answer_difference = answer(reported) - answer(counted)
    answer_difference -= min(max(answer_difference, 0), _tokens_without_text_max(outcome))
    return max(abs(prompt_difference), abs(answer_difference)) > tolerance_tokens


def _tokens_without_text_max(outcome: Outcome) -> int:
    """How many tokens at the end of the answer may have no text that was delivered, besides an end-of-turn token."""
    match outcome.end.finish_reason:
        case FinishReason.LENGTH:
            return TOKENS_WITHOUT_TEXT_MAX
        case FinishReason.STOP:
            return TOKENS_WITHOUT_TEXT_MAX + max((len(stop.encode()) for stop in outcome.stop), default=0)
        case _:
            return 0


def receipt_of_charge(charge: Charge, spendable_microcredits: int, *, replayed: bool) -> Receipt:
    """Return the receipt of a charged request."""
    return Receipt(
        subscriber_id=charge.subscriber_id,
        charge_id=charge.charge_id,
        model_id=charge.model_id,
        rate_card_id=charge.rate_card_id,
        counting_source=charge.counting_source,
        usage_counted=charge.usage_counted,
        usage_reported=charge.usage_reported,
        charged_microcredits=charge.charged_microcredits,
        spendable_microcredits=spendable_microcredits,
        finish_reason=charge.finish_reason,
        close_cause=charge.close_cause,
        replayed=replayed,
    )


def receipt_of_release(
    reservation: Reservation, priced: PricedPrompt, spendable_microcredits: int, cause: CloseCause
) -> Receipt:
    """Return the receipt of a request that is charged nothing."""
    return Receipt(
        subscriber_id=reservation.subscriber_id,
        charge_id=None,
        model_id=reservation.model_id,
        rate_card_id=reservation.rate_card_id,
        counting_source=priced.model.counting_source,
        usage_counted=Usage(),
        usage_reported=None,
        charged_microcredits=0,
        spendable_microcredits=spendable_microcredits,
        finish_reason=FinishReason.INTERRUPTED,
        close_cause=cause,
        replayed=False,
    )


async def write_replay(sink: Sink, replayed: Replayed, deltas: Iterable[Delta]) -> None:
    """Write the record of a charged request to the app, as a stream would be written."""
    charge = replayed.charge
    usage = charge.usage_counted
    await sink.admit(
        Admission(
            subscriber_id=charge.subscriber_id,
            reservation_id=charge.reservation_id,
            prompt_tokens=usage.get(TokenClass.PROMPT) + usage.get(TokenClass.CACHED_PROMPT),
            model_id=charge.model_id,
            rate_card_id=charge.rate_card_id,
        )
    )
    for delta in deltas:
        await sink.deliver(delta)
    await sink.receipt(receipt_of_charge(charge, replayed.spendable_microcredits, replayed=True))

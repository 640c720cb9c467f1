"""What a run is made of, and what it makes of that by the model's counting source."""

from collections.abc import Callable
from functools import partial
from typing import TypedDict

from metergate.core.inference import InferenceRequest
from metergate.core.reservation import Reservation
from metergate.metering.answer import AnswerCounter
from metergate.metering.answer_count import AnswerCount
from metergate.metering.bounded_answer import BoundedAnswer
from metergate.metering.detokenizer import Detokenizer
from metergate.metering.plan import Plan
from metergate.metering.pool import Candidates
from metergate.metering.services import Services
from metergate.metering.token_id_answer import TokenIdAnswerCounter
from metergate.ports import CallObserver, TokenCodec, Tokenizer


class RunParts(TypedDict):
    """What a run is made of."""

    services: Services
    plan: Plan
    reservation: Reservation
    tokenizer: Tokenizer | None  # None: its backend counts the model
    codec: TokenCodec | None  # of a model that is counted by its token ids
    candidates: Candidates
    deadline: float | None  # on the loop's clock; None: the app set none
    observer: CallObserver
    began_seconds: float  # when the call came in, on the services' clock


def answer_count(parts: RunParts) -> AnswerCount:
    """Return what counts the answer, by the model's counting source."""
    priced, tokenizer = parts["plan"].priced, parts["tokenizer"]
    if parts["codec"] is not None:
        return TokenIdAnswerCounter()
    if tokenizer is not None:
        return AnswerCounter(tokenizer)
    return BoundedAnswer(tokens_max=priced.completion_tokens_max, prefers_reasoning=priced.prefers_reasoning)


def detokenizer_maker(parts: RunParts) -> Callable[[], Detokenizer] | None:
    """Return what makes the texts of an answer of its token ids, anew for each attempt; None: backends send texts."""
    plan, codec = parts["plan"], parts["codec"]
    if codec is None or not isinstance(plan.request, InferenceRequest):
        return None
    return partial(
        Detokenizer,
        codec,
        model_id=plan.priced.model.model_id,
        stop=plan.request.sampling.stop,
        reasoning=plan.priced.model.reasoning,
        token_ids_max=plan.priced.completion_tokens_max,
    )

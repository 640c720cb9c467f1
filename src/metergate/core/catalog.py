"""The models on sale: who made each, what it costs, how it is counted, which backends run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.errors import ModelNotFound, PriceUnavailable
from metergate.core.rating import RateCard, current_card
from metergate.core.usage import CountingSource


class ReasoningForm(StrEnum):
    """How a model's raw text tells its reasoning from its answer."""

    NONE = "NONE"  # it does not: all of it is content
    THINK = "THINK"  # it may begin with <think>reasoning</think>
    THINK_OPEN = "THINK_OPEN"  # the prompt ends with <think>, so it begins with reasoning</think>


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model an app can ask for."""

    model_id: str
    display_name: str
    provider_id: str  # its developer, who is paid
    context_tokens: int  # prompt and completion together
    counting_source: CountingSource
    backend_ids: tuple[str, ...]  # at least one
    rate_cards: tuple[RateCard, ...]  # in order of effect
    usage_tolerance_tokens: int  # counted and reported may differ by this much of completion without being flagged
    reasoning: ReasoningForm = ReasoningForm.NONE  # of a model that is counted by its token ids
    backend_weights: Mapping[str, int] = field(default_factory=dict)  # by backend id; absent: 1; 0: it stands by

    def weights(self) -> dict[str, int]:
        """Its backends with their weights."""
        return {backend_id: self.backend_weights.get(backend_id, 1) for backend_id in self.backend_ids}

    def rate_card(self, now_us: int) -> RateCard:
        """The card in effect; PriceUnavailable if there is none (L8)."""
        card = current_card(self.rate_cards, now_us)
        if card is None:
            raise PriceUnavailable(model_id=self.model_id)
        return card


@dataclass(frozen=True, slots=True)
class Catalog:
    """All models by id."""

    models: Mapping[str, Model]

    def get(self, model_id: str) -> Model:
        """The model; ModelNotFound if there is none."""
        try:
            return self.models[model_id]
        except KeyError:
            raise ModelNotFound(model_id=model_id) from None

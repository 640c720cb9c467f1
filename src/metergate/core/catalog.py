"""The models on sale: who made each, what it costs, how it is counted, which backends run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.errors import ModelNotFound, ModelTaskWrong, PriceUnavailable
from metergate.core.parameters import ALL_PARAMETERS, Parameter
from metergate.core.rating import RateCard, current_card
from metergate.core.text_bounds import PromptBound
from metergate.core.usage import CountingSource


class ReasoningForm(StrEnum):
    """How a model's raw text tells its reasoning from its answer."""

    NONE = "NONE"  # it does not: all of it is content
    THINK = "THINK"  # it may begin with <think>reasoning</think>
    THINK_OPEN = "THINK_OPEN"  # the prompt ends with <think>, so it begins with reasoning</think>


class ModelTask(StrEnum):
    """What a model does."""

    CHAT = "CHAT"  # it answers a conversation
    EMBEDDING = "EMBEDDING"  # it turns texts into vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model an app can ask for."""

    model_id: str
    display_name: str
    provider_id: str  # its developer, who is paid
    context_tokens: int  # prompt and completion together; of an EMBEDDING model: one input
    counting_source: CountingSource
    backend_ids: tuple[str, ...]  # at least one
    rate_cards: tuple[RateCard, ...]  # in order of effect
    usage_tolerance_tokens: int  # counted and reported may differ by this much of completion without being flagged
    reasoning: ReasoningForm = ReasoningForm.NONE  # of a model that is counted by its token ids
    prompt_bound: PromptBound | None = None  # of a model that its backend counts (BACKEND); None: the gateway counts
    backend_weights: Mapping[str, int] = field(default_factory=dict)  # by backend id; absent: 1; 0: it stands by
    task: ModelTask = ModelTask.CHAT
    dimensions: int | None = None  # numbers of a vector; set if and only if the task is EMBEDDING
    dimensions_selectable: bool = False  # whether a request may ask for fewer
    parameters: frozenset[Parameter] = ALL_PARAMETERS  # what each of its backends takes

    def must_be_for(self, task: ModelTask) -> None:
        """ModelTaskWrong for a request of another task."""
        if self.task is not task:
            raise ModelTaskWrong(model_id=self.model_id, task=self.task)

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

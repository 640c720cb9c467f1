"""What is known of a request before it runs: who pays, how its prompt counts, what it may cost at most."""

from collections.abc import Sequence
from dataclasses import dataclass

from metergate.core.catalog import Model
from metergate.core.embedding import EmbeddingBackendRequest, EmbeddingRequest
from metergate.core.errors import PromptTooLong
from metergate.core.inference import BackendRequest, InferenceRequest
from metergate.core.rating import RateCard, rate_ceil, round_up
from metergate.core.receipts import Quote
from metergate.core.reservation import Estimate
from metergate.core.rows import Authorization
from metergate.core.usage import TokenClass, Usage


class PricedPrompt:
    """A counted prompt of a model, with the prices that hold for the request."""

    __slots__ = (
        "_completion_price",
        "_prompt_exact",
        "_reasoning_price",
        "completion_tokens_max",
        "model",
        "prompt_token_ids",
        "prompt_tokens",
        "prompt_tokens_estimated",
        "rate_card",
    )

    def __init__(
        self,
        *,
        model: Model,
        rate_card: RateCard,
        prompt_tokens: int,
        completion_tokens_max: int,
        prompt_token_ids: Sequence[int] = (),
        prompt_tokens_estimated: int | None = None,
    ) -> None:
        """``completion_tokens_max`` bounds answer and reasoning together; 0: the model writes none, without a price.

        ``prompt_token_ids`` are what was counted, of a model that is counted by its token ids. They are sent as they
        are: a template that renders otherwise a second later cannot make them differ.
        ``prompt_tokens_estimated``: what they probably are, if ``prompt_tokens`` is the most they can be; None: it is
        their count.
        """
        self.prompt_tokens_estimated = prompt_tokens_estimated
        self.model = model
        self.rate_card = rate_card
        self.prompt_tokens = prompt_tokens
        self.prompt_token_ids = prompt_token_ids
        self.completion_tokens_max = completion_tokens_max
        # Looked up once: a cost is taken at every delivery.
        self._prompt_exact = prompt_tokens * rate_card.price(TokenClass.PROMPT)
        self._completion_price = rate_card.price(TokenClass.COMPLETION) if completion_tokens_max else 0
        self._reasoning_price = rate_card.price(TokenClass.REASONING) if completion_tokens_max else 0

    def usage(self, completion_tokens: int = 0, reasoning_tokens: int = 0) -> Usage:
        """Return the usage of the prompt and an answer, as the gateway counts them."""
        tokens: list[tuple[TokenClass, int]] = [(TokenClass.PROMPT, self.prompt_tokens)] if self.prompt_tokens else []
        if completion_tokens:
            tokens.append((TokenClass.COMPLETION, completion_tokens))
        if reasoning_tokens:
            tokens.append((TokenClass.REASONING, reasoning_tokens))
        return Usage(tuple(tokens))

    def cost(self, completion_tokens: int = 0, reasoning_tokens: int = 0) -> int:
        """Microcredits of that usage: what ``rate_ceil`` says of it."""
        return round_up(
            self._prompt_exact + completion_tokens * self._completion_price + reasoning_tokens * self._reasoning_price
        )

    @property
    def prefers_reasoning(self) -> bool:
        """Whether reasoning is the dearer class of an answer."""
        return self._reasoning_price > self._completion_price

    def estimate(self, reported: Usage | None, completion_tokens: int, reasoning_tokens: int) -> Estimate:
        """Return what was probably used, and what it costs: the prompt as reported, if it was."""
        prompt_tokens = self.prompt_tokens if self.prompt_tokens_estimated is None else self.prompt_tokens_estimated
        prompt_classes = (TokenClass.PROMPT, TokenClass.CACHED_PROMPT)
        prompt = (
            {TokenClass.PROMPT: prompt_tokens}
            if reported is None
            else {token_class: reported.get(token_class) for token_class in prompt_classes}
        )
        answer = {TokenClass.COMPLETION: completion_tokens, TokenClass.REASONING: reasoning_tokens}
        usage = Usage.of(prompt | answer)
        return Estimate(usage=usage, microcredits=rate_ceil(usage, self.rate_card))

    def cost_max(self, answer_tokens: int) -> int:
        """Microcredits of the prompt and an answer of so many tokens of the dearer class."""
        return round_up(self._prompt_exact + answer_tokens * max(self._completion_price, self._reasoning_price))

    def quote(self) -> Quote:
        """Return what it counts and may cost, for who asks before it sends."""
        return Quote(
            model_id=self.model.model_id,
            prompt_tokens=self.prompt_tokens,
            completion_tokens_max=self.completion_tokens_max,
            prompt_microcredits=self.cost(),
            cost_microcredits_max=self.cost_max(self.completion_tokens_max),
            rate_card=self.rate_card,
            counting_source=self.model.counting_source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that can be admitted."""

    caller: Authorization
    request: InferenceRequest | EmbeddingRequest
    backend_request: BackendRequest | EmbeddingBackendRequest
    content_hash: bytes
    priced: PricedPrompt

    def limit_microcredits(self) -> int:
        """Return what the request may cost at most."""
        most = self.priced.cost_max(self.priced.completion_tokens_max)
        limit = self.request.credit_limit_microcredits
        return most if limit is None else min(most, limit)


def bounded_room(model: Model, tokens_max: int, tokens_estimated: int, max_completion_tokens: int | None) -> int:
    """Return the most tokens an answer can have after a prompt that only the backend can count.

    A backend refuses what its context does not hold. If the app names no maximum, what is asked for fits after the
    longest that the prompt can be; of a long prompt, half of what its estimate leaves.
    """
    room = model.context_tokens - 1
    if max_completion_tokens is not None:
        return min(room, max_completion_tokens)
    return max(1, model.context_tokens - tokens_max, (model.context_tokens - tokens_estimated) // 2)


def completion_room(model: Model, prompt_tokens: int, max_completion_tokens: int | None) -> int:
    """Return the most tokens an answer can have; PromptTooLong if the context leaves none."""
    room = model.context_tokens - prompt_tokens
    if room < 1:
        raise PromptTooLong(
            model_id=model.model_id, prompt_tokens=prompt_tokens, prompt_tokens_max=model.context_tokens - 1
        )
    return room if max_completion_tokens is None else min(room, max_completion_tokens)

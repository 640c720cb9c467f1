"""What is known of a request before it runs: who pays, how its prompt counts, what it may cost at most."""

from collections.abc import Sequence
from dataclasses import dataclass

from metergate.core.catalog import Model
from metergate.core.errors import PromptTooLong
from metergate.core.inference import InferenceRequest
from metergate.core.rating import RateCard, round_up
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
    ) -> None:
        """``completion_tokens_max`` bounds answer and reasoning together.

        ``prompt_token_ids`` are what was counted, of a model that is counted by its token ids. They are sent as they
        are: a template that renders otherwise a second later cannot make them differ.
        """
        self.model = model
        self.rate_card = rate_card
        self.prompt_tokens = prompt_tokens
        self.prompt_token_ids = prompt_token_ids
        self.completion_tokens_max = completion_tokens_max
        # Looked up once: a cost is taken at every delivery.
        self._prompt_exact = prompt_tokens * rate_card.price(TokenClass.PROMPT)
        self._completion_price = rate_card.price(TokenClass.COMPLETION)
        self._reasoning_price = rate_card.price(TokenClass.REASONING)

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

    def cost_max(self, answer_tokens: int) -> int:
        """Microcredits of the prompt and an answer of so many tokens of the dearer class."""
        return round_up(self._prompt_exact + answer_tokens * max(self._completion_price, self._reasoning_price))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that can be admitted."""

    caller: Authorization
    request: InferenceRequest
    content_hash: bytes
    priced: PricedPrompt

    def limit_microcredits(self) -> int:
        """Return what the request may cost at most."""
        most = self.priced.cost_max(self.priced.completion_tokens_max)
        limit = self.request.credit_limit_microcredits
        return most if limit is None else min(most, limit)


def completion_room(model: Model, prompt_tokens: int, max_completion_tokens: int | None) -> int:
    """Return the most tokens an answer can have; PromptTooLong if the context leaves none."""
    room = model.context_tokens - prompt_tokens
    if room < 1:
        raise PromptTooLong(
            model_id=model.model_id, prompt_tokens=prompt_tokens, prompt_tokens_max=model.context_tokens - 1
        )
    return room if max_completion_tokens is None else min(room, max_completion_tokens)

"""Embeddings: what one may cost, and its run. All else is as with every request (L6)."""

import asyncio
from collections.abc import Sequence

from metergate.core.catalog import Model
from metergate.core.embedding import NUMBERS_MAX, EmbeddingBackendRequest, EmbeddingRequest, Embeddings
from metergate.core.errors import PromptTooLong, RequestInvalid, Violation
from metergate.metering.buffer import End
from metergate.metering.replays import Answer
from metergate.metering.whole_run import WholeRun
from metergate.ports import Tokenizer


class EmbeddingRun(WholeRun):
    """A request whose vectors are delivered at once, after it was settled."""

    @property
    def embeddings(self) -> Embeddings | None:
        """What the backend answered; None: nothing yet."""
        return self._reader.embeddings

    def _was_delivered(self, end: End) -> bool:
        return super()._was_delivered(end) and self.embeddings is not None

    def _answer_to_keep(self) -> Answer:
        return self.embeddings or []


def backend_request(model: Model, request: EmbeddingRequest) -> EmbeddingBackendRequest:
    """What a backend is asked; RequestInvalid if the answer would be none that the model gives, or is too large."""
    assert model.dimensions is not None
    dimensions = request.dimensions or model.dimensions
    if dimensions > model.dimensions or (dimensions != model.dimensions and not model.dimensions_selectable):
        only = f"1 to {model.dimensions}" if model.dimensions_selectable else f"{model.dimensions} or not set"
        raise RequestInvalid(Violation("dimensions", f"must be {only} for {model.model_id}"))
    numbers = dimensions * len(request.inputs)
    if numbers > NUMBERS_MAX:
        description = (
            f"make {numbers} numbers; one answer has at most {NUMBERS_MAX}: {NUMBERS_MAX // dimensions} inputs"
        )
        raise RequestInvalid(Violation("inputs", description))
    return EmbeddingBackendRequest(
        model_id=model.model_id,
        inputs=request.inputs,
        dimensions=dimensions,
        asks_dimensions=request.dimensions is not None,
    )


async def count_inputs(model: Model, tokenizer: Tokenizer, inputs: Sequence[str], *, is_long: bool) -> int:
    """Tokens of all inputs, counted in a thread if they are long.

    PromptTooLong or RequestInvalid, naming the input, if one cannot be embedded.
    """
    characters_per_token = tokenizer.characters_per_token_max
    if characters_per_token is not None:
        # What is too long whatever its count is, is not counted.
        for index, text in enumerate(inputs):
            _check_length(model, index, len(text) // characters_per_token)
    if is_long:
        return await asyncio.to_thread(_count, model, tokenizer, inputs)
    return _count(model, tokenizer, inputs)


def _count(model: Model, tokenizer: Tokenizer, inputs: Sequence[str]) -> int:
    total = 0
    for index, text in enumerate(inputs):
        try:
            tokens = tokenizer.count_input(text)
        except RequestInvalid as error:
            violations = (Violation(f"inputs[{index}]", violation.description) for violation in error.violations)
            raise RequestInvalid(*violations) from error
        _check_length(model, index, tokens)
        total += tokens
    return total


def _check_length(model: Model, index: int, tokens: int) -> None:
    if tokens > model.context_tokens:
        raise PromptTooLong(
            model_id=model.model_id,
            prompt_tokens=tokens,
            prompt_tokens_max=model.context_tokens,
            field=f"inputs[{index}]",
        )

"""Planning: what a request is counted at, what it may cost, and what is reserved for it; or why it is refused."""

import asyncio
from collections.abc import Sequence

from metergate.core.catalog import Model, ModelTask
from metergate.core.embedding import EmbeddingRequest
from metergate.core.errors import ModelNotAllowed, RequestInvalid, Violation
from metergate.core.inference import BackendRequest, InferenceRequest, Prompt
from metergate.core.operations import Reserve
from metergate.core.parameters import check_parameters
from metergate.core.rating import RateCard
from metergate.core.rows import Authorization
from metergate.core.text_bounds import PromptBound, prompt_tokens_estimated, prompt_tokens_max
from metergate.metering.canonical import content_hash
from metergate.metering.embedding import backend_request, count_inputs
from metergate.metering.offering import Offering
from metergate.metering.plan import Plan, PricedPrompt, bounded_room, completion_room
from metergate.metering.services import Services

# What a chat template writes around a message, about; short messages make long prompts too.
TEMPLATE_CHARACTERS = 32


class Planner:
    """Plans requests. Every method raises a MetergateError for what is refused; nothing is reserved."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def plan(
        self, offering: Offering, caller: Authorization, request: InferenceRequest | EmbeddingRequest
    ) -> Plan:
        """What is known of a request before it runs."""
        if isinstance(request, EmbeddingRequest):
            return await self._plan_embedding(offering, caller, request)
        return await self._plan_chat(offering, caller, request)

    async def price(
        self,
        offering: Offering,
        caller: Authorization,
        model_id: str,
        prompt: Prompt,
        max_completion_tokens: int | None,
    ) -> PricedPrompt:
        """The prompt of a chat, counted, with the prices that hold for it."""
        model = _model(offering, caller, model_id, ModelTask.CHAT)
        rate_card = model.rate_card(self._services.clock.now_us())
        if model.prompt_bound is not None:
            return await self._price_bounded(model, rate_card, prompt, model.prompt_bound, max_completion_tokens)
        tokenizer = offering.tokenizers[model_id]
        _refuse_hopeless(model, prompt, tokenizer.characters_per_token_max)
        codec = offering.codecs.get(model_id)
        prompt_token_ids: Sequence[int] = ()
        if codec is None:
            count = tokenizer.count_prompt
            prompt_tokens = await asyncio.to_thread(count, prompt) if self._is_long(prompt) else count(prompt)
        else:
            _refuse_tools(model, prompt)
            encode = codec.encode_prompt
            prompt_token_ids = await asyncio.to_thread(encode, prompt) if self._is_long(prompt) else encode(prompt)
            prompt_tokens = len(prompt_token_ids)
        return PricedPrompt(
            model=model,
            rate_card=rate_card,
            prompt_tokens=prompt_tokens,
            prompt_token_ids=prompt_token_ids,
            completion_tokens_max=completion_room(model, prompt_tokens, max_completion_tokens),
        )

    async def price_inputs(
        self, offering: Offering, caller: Authorization, model_id: str, inputs: tuple[str, ...]
    ) -> PricedPrompt:
        """Texts to embed, counted, with the prices that hold for them."""
        model = _model(offering, caller, model_id, ModelTask.EMBEDDING)
        rate_card = model.rate_card(self._services.clock.now_us())
        tokenizer = offering.tokenizers[model_id]
        prompt_tokens = await count_inputs(model, tokenizer, inputs, is_long=self._is_long(inputs))
        return PricedPrompt(model=model, rate_card=rate_card, prompt_tokens=prompt_tokens, completion_tokens_max=0)

    async def content_hash(self, request: InferenceRequest | EmbeddingRequest) -> bytes:
        """What tells a repeated request from another of its id."""
        key = self._services.ledger.content_key
        is_long = self._is_long(request.inputs if isinstance(request, EmbeddingRequest) else request.prompt)
        return await asyncio.to_thread(content_hash, key, request) if is_long else content_hash(key, request)

    async def _plan_chat(self, offering: Offering, caller: Authorization, request: InferenceRequest) -> Plan:
        prompt = request.prompt
        check_parameters(request, _model(offering, caller, request.model_id, ModelTask.CHAT).parameters)
        priced = await self.price(offering, caller, request.model_id, prompt, request.max_completion_tokens)
        return Plan(
            caller=caller,
            request=request,
            backend_request=BackendRequest(
                model_id=priced.model.model_id,
                prompt=prompt,
                sampling=request.sampling,
                response_format=request.response_format,
                tool_choice=request.tool_choice,
                max_completion_tokens=priced.completion_tokens_max,
                prompt_token_ids=priced.prompt_token_ids,
            ),
            content_hash=await self.content_hash(request),
            priced=priced,
        )

    async def _plan_embedding(self, offering: Offering, caller: Authorization, request: EmbeddingRequest) -> Plan:
        model = _model(offering, caller, request.model_id, ModelTask.EMBEDDING)
        return Plan(
            caller=caller,
            request=request,
            backend_request=backend_request(model, request),
            priced=await self.price_inputs(offering, caller, request.model_id, request.inputs),
            content_hash=await self.content_hash(request),
        )

    async def _price_bounded(
        self, model: Model, rate_card: RateCard, prompt: Prompt, bound: PromptBound, max_completion_tokens: int | None
    ) -> PricedPrompt:
        """A prompt that only the backend can count, at the most that it can be."""

        def count() -> tuple[int, int]:
            return prompt_tokens_max(prompt, bound), prompt_tokens_estimated(prompt)

        tokens_max, estimated = await asyncio.to_thread(count) if self._is_long(prompt) else count()
        return PricedPrompt(
            model=model,
            rate_card=rate_card,
            prompt_tokens=tokens_max,
            completion_tokens_max=bounded_room(model, tokens_max, estimated, max_completion_tokens),
            prompt_tokens_estimated=estimated,
        )

    def _is_long(self, text: Prompt | Sequence[str]) -> bool:
        """Whether working through all of it would hold the event loop."""
        if isinstance(text, Prompt):
            characters = text.characters() + TEMPLATE_CHARACTERS * len(text.messages)
        else:
            characters = sum(map(len, text))
        return characters > self._services.limits.counted_in_loop_characters_max


def reserve_operation(services: Services, plan: Plan) -> Reserve:
    """Return the operation that reserves the prompt and a first slice of the answer."""
    priced = plan.priced
    slice_tokens = min(services.limits.slice_tokens, priced.completion_tokens_max)
    return Reserve(
        reservation_id=services.new_id(),
        subscriber_id=plan.caller.subscriber_id,
        authorization_id=plan.caller.authorization_id,
        request_id=plan.request.request_id,
        content_hash=plan.content_hash,
        owner=services.ledger.owner,
        model_id=priced.model.model_id,
        provider_id=priced.model.provider_id,
        counting_source=priced.model.counting_source,
        rate_card_id=priced.rate_card.rate_card_id,
        minimum_microcredits=priced.cost_max(min(1, priced.completion_tokens_max)),
        wanted_microcredits=priced.cost_max(slice_tokens),
        limit_microcredits=plan.limit_microcredits(),
        capture_microcredits=priced.cost(),
        capture_usage=priced.usage(),
        estimate=None if priced.prompt_tokens_estimated is None else priced.estimate(None, 0, 0),
        now_us=services.clock.now_us(),
    )


def _model(offering: Offering, caller: Authorization, model_id: str, task: ModelTask) -> Model:
    model = offering.catalog.get(model_id)
    if caller.allowed_models and model_id not in caller.allowed_models:
        raise ModelNotAllowed(model_id=model_id)
    model.must_be_for(task)
    return model


def _refuse_hopeless(model: Model, prompt: Prompt, characters_per_token_max: int | None) -> None:
    """PromptTooLong for a prompt that is too long whatever its count is: counting it would be for nothing."""
    if characters_per_token_max is not None:
        completion_room(model, prompt.characters() // characters_per_token_max, None)


def _refuse_tools(model: Model, prompt: Prompt) -> None:
    """RequestInvalid for tools: an engine sends a tool call as raw text, each model in a form of its own."""
    if prompt.tools:
        description = f"{model.model_id} takes no tools: its calls would come as text, in a form of the model's own"
        raise RequestInvalid(Violation("tools", description))

"""The use case: authorize, count, reserve, run, settle; and stop in good order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from metergate.core.catalog import Model, ModelTask
from metergate.core.embedding import EmbeddingRequest
from metergate.core.errors import (
    DeadlineExceeded,
    LedgerDiffers,
    MetergateError,
    ModelNotAllowed,
    Overloaded,
    RequestInvalid,
    ShuttingDown,
    Violation,
)
from metergate.core.inference import BackendRequest, InferenceRequest, Prompt
from metergate.core.operations import Replayed, Reserve, Reserved, Settle
from metergate.core.parameters import check_parameters
from metergate.core.rating import RateCard
from metergate.core.receipts import Admission, Completion, Embedded, Quote, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import Authorization
from metergate.core.text_bounds import PromptBound, prompt_tokens_estimated, prompt_tokens_max
from metergate.core.usage import TokenClass
from metergate.metering.buffer import End
from metergate.metering.closing import receipt_of_charge
from metergate.metering.deltas import whole_message
from metergate.metering.embedding import EmbeddingRun, backend_request, count_inputs
from metergate.metering.limits import Limits
from metergate.metering.offering import Offering
from metergate.metering.plan import Plan, PricedPrompt, bounded_room, completion_room, content_hash
from metergate.metering.pool import Candidates
from metergate.metering.replays import ReplayBuffer
from metergate.metering.run import Run, RunParts
from metergate.metering.services import BackgroundTasks, Services
from metergate.metering.streamed_run import StreamedRun
from metergate.metering.whole_run import WholeRun
from metergate.ports import CallObserver, CallStart, Clock, ContentPolicy, LedgerStore, Observer, Sink

logger = logging.getLogger(__name__)

# What a chat template writes around a message, about; short messages make long prompts too.
TEMPLATE_CHARACTERS = 32


# The app sent no trace context.
NO_TRACE: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True, kw_only=True)
class Call:
    """A call that was let in."""

    observer: CallObserver
    offering: Offering  # what was on sale when it came in
    began_seconds: float  # on the services' clock
    deadline: float | None  # on the loop's clock; None: the app set none
    run: Run | None = None  # once it holds a reservation
    reservation_id: str = ""  # that the call may hold, from before it is asked for


class Metering:
    """Every request of every app goes through here."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        offering: Offering,
        clock: Clock,
        new_id: Callable[[], str],
        monotonic: Callable[[], float],
        limits: Limits,
        observer: Observer,
        policy: ContentPolicy | None = None,
    ) -> None:
        """``policy`` is asked about all text of answers before it is delivered; None: nothing is asked."""
        # Calls that come in from now on are served from it; replaced, not changed.
        self.offering = offering
        self._services = Services(
            ledger=ledger,
            clock=clock,
            new_id=new_id,
            monotonic=monotonic,
            limits=limits,
            replays=ReplayBuffer(
                characters_max=limits.replay_characters_max,
                seconds_max=limits.replay_seconds,
                monotonic=monotonic,
            ),
            tasks=BackgroundTasks(),
            policy=policy,
        )
        self._observer = observer
        self._is_draining = False  # admit nothing more
        self._is_stopping = False  # end what runs
        self._admits = True  # False: the books differ
        self._calls = 0
        self._held: set[str] = set()  # ids of reservations that a call, or what it left behind, will settle
        self._runs: dict[Run, None] = {}  # in order of admission
        self._replays: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- verbs ------------------------------------------------------------------------------------------------------

    async def stream(
        self,
        caller: Authorization,
        request: InferenceRequest,
        sink: Sink,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> None:
        """Run a request and write admission, deltas and receipt to the sink; raise a MetergateError if it failed."""
        async with self._call(_start("StreamComplete", caller, request, trace_context), time_left_seconds) as call:
            plan = await self._plan(call.offering, caller, request)
            outcome = await self._reserve(call, plan)
            if isinstance(outcome, Replayed):
                await self._replay(outcome, sink)
            else:
                await self._serve(call, StreamedRun(sink=sink, **self._parts(call, plan, outcome)))

    async def complete(
        self,
        caller: Authorization,
        request: InferenceRequest,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> Completion:
        """Run a request and return its whole answer, charged; raise a MetergateError if it failed."""
        async with self._call(_start("Complete", caller, request, trace_context), time_left_seconds) as call:
            plan = await self._plan(call.offering, caller, request)
            outcome = await self._reserve(call, plan)
            if isinstance(outcome, Replayed):
                receipt = receipt_of_charge(outcome.charge, outcome.spendable_microcredits, replayed=True)
                deltas = self._services.replays.deltas(outcome.charge.charge_id)
            else:
                run = WholeRun(**self._parts(call, plan, outcome))
                receipt = await self._serve(call, run)
                deltas = run.transcript.deltas()
        message, reasoning_content = whole_message(deltas or [])
        return Completion(
            message=None if deltas is None else message, reasoning_content=reasoning_content, receipt=receipt
        )

    async def embed(
        self,
        caller: Authorization,
        request: EmbeddingRequest,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> Embedded:
        """Turn texts into vectors and return them, charged; raise a MetergateError if that failed."""
        async with self._call(_start("Embed", caller, request, trace_context), time_left_seconds) as call:
            plan = await self._plan_embedding(call.offering, caller, request)
            outcome = await self._reserve(call, plan)
            if isinstance(outcome, Replayed):
                receipt = receipt_of_charge(outcome.charge, outcome.spendable_microcredits, replayed=True)
                return Embedded(embeddings=self._services.replays.embeddings(outcome.charge.charge_id), receipt=receipt)
            run = EmbeddingRun(**self._parts(call, plan, outcome))
            receipt = await self._serve(call, run)
            return Embedded(embeddings=run.embeddings, receipt=receipt)

    async def count_tokens(
        self,
        caller: Authorization,
        model_id: str,
        prompt: Prompt,
        max_completion_tokens: int | None,
        *,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> Quote:
        """Count a prompt and say the most that running it can cost; nothing is charged."""
        start = CallStart(
            verb="CountTokens", caller=caller, model_id=model_id, request_id="", trace_context=trace_context
        )
        async with self._call(start, None) as call:
            priced = await self._price(call.offering, caller, model_id, prompt, max_completion_tokens)
            return Quote(
                model_id=model_id,
                prompt_tokens=priced.prompt_tokens,
                completion_tokens_max=priced.completion_tokens_max,
                prompt_microcredits=priced.cost(),
                cost_microcredits_max=priced.cost_max(priced.completion_tokens_max),
                rate_card=priced.rate_card,
                counting_source=priced.model.counting_source,
            )

    async def drain(self, seconds_max: float) -> None:
        """Admit nothing more; let what runs end within ``seconds_max``, then end it; return when all is settled."""
        self._is_draining = True
        try:
            async with asyncio.timeout(seconds_max):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("draining: %d requests are ended", len(self._runs))
        self._is_stopping = True
        for run in tuple(self._runs):
            run.stop(_drained())
        for patience in self._replays:
            patience.reschedule(self._patience_end())
        await self.settled()

    def forget_texts(self) -> None:
        """Keep no answer for replays any more: somebody whose answer may be among them is to be forgotten."""
        self._services.replays.clear()

    def stop_admissions(self) -> None:
        """Admit nothing more, for good, because the ledger's books differ; what runs ends by itself."""
        self._admits = False

    @property
    def oldest_run_seconds(self) -> float:
        """How long the oldest running request has been running; 0 if none is."""
        now = self._services.monotonic()
        return max((now - run.began_seconds for run in self._runs), default=0.0)

    def is_running(self, reservation_id: str) -> bool:
        """Whether a call, or what it left behind, will still settle this reservation."""
        return reservation_id in self._held

    @property
    def running(self) -> int:
        """How many requests hold a reservation now."""
        return len(self._runs)

    def _patience_end(self) -> float:
        return asyncio.get_running_loop().time() + self._services.limits.stalled_write_seconds_max

    async def settled(self) -> None:
        """Wait until no call runs and everything that calls left behind is settled."""
        await self._idle.wait()
        await self._services.tasks.wait()

    # --- admission --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _call(self, start: CallStart, time_left_seconds: float | None) -> AsyncIterator[Call]:
        """Let a call in, unless the gateway drains or is full, and see to it that it is seen to end."""
        call = Call(
            observer=self._observer.call_began(start),
            offering=self.offering,
            began_seconds=self._services.monotonic(),
            deadline=_deadline(time_left_seconds),
        )
        error: BaseException | None = None

        def ended() -> None:
            call.offering.leave()
            self._held.discard(call.reservation_id)
            call.observer.ended(error)

        call.offering.enter()
        self._calls += 1
        self._idle.clear()
        try:
            if self._is_draining:
                raise ShuttingDown
            if not self._admits:
                raise LedgerDiffers
            if self._calls > self._services.limits.requests_max:
                raise Overloaded(limit=f"{self._services.limits.requests_max} requests at once")
            yield call
        except BaseException as exc:
            error = exc
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
            if call.run is None:
                ended()
            else:
                call.run.when_settled(ended)

    def _model(self, offering: Offering, caller: Authorization, model_id: str, task: ModelTask) -> Model:
        model = offering.catalog.get(model_id)
        if caller.allowed_models and model_id not in caller.allowed_models:
            raise ModelNotAllowed(model_id=model_id)
        model.must_be_for(task)
        return model

    async def _price(
        self,
        offering: Offering,
        caller: Authorization,
        model_id: str,
        prompt: Prompt,
        max_completion_tokens: int | None,
    ) -> PricedPrompt:
        model = self._model(offering, caller, model_id, ModelTask.CHAT)
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

    def _is_long(self, prompt: Prompt) -> bool:
        """Whether working through all of it would hold the event loop."""
        characters = prompt.characters() + TEMPLATE_CHARACTERS * len(prompt.messages)
        return characters > self._services.limits.counted_in_loop_characters_max

    async def _plan(self, offering: Offering, caller: Authorization, request: InferenceRequest) -> Plan:
        prompt = request.prompt
        check_parameters(request, self._model(offering, caller, request.model_id, ModelTask.CHAT).parameters)
        priced = await self._price(offering, caller, request.model_id, prompt, request.max_completion_tokens)
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
            content_hash=await self._content_hash(request, is_long=self._is_long(prompt)),
            priced=priced,
        )

    async def _plan_embedding(self, offering: Offering, caller: Authorization, request: EmbeddingRequest) -> Plan:
        model = self._model(offering, caller, request.model_id, ModelTask.EMBEDDING)
        rate_card = model.rate_card(self._services.clock.now_us())
        asked = backend_request(model, request)
        limits = self._services.limits
        is_long = request.characters() > limits.counted_in_loop_characters_max
        prompt_tokens = await count_inputs(model, offering.tokenizers[model.model_id], request, is_long=is_long)
        return Plan(
            caller=caller,
            request=request,
            backend_request=asked,
            content_hash=await self._content_hash(request, is_long=is_long),
            priced=PricedPrompt(model=model, rate_card=rate_card, prompt_tokens=prompt_tokens, completion_tokens_max=0),
        )

    async def _content_hash(self, request: InferenceRequest | EmbeddingRequest, *, is_long: bool) -> bytes:
        key = self._services.ledger.content_key
        return await asyncio.to_thread(content_hash, key, request) if is_long else content_hash(key, request)

    async def _reserve(self, call: Call, plan: Plan) -> Reserved | Replayed:
        services, priced = self._services, plan.priced
        slice_tokens = min(services.limits.slice_tokens, priced.completion_tokens_max)
        operation = Reserve(
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
        call.reservation_id = operation.reservation_id
        self._held.add(operation.reservation_id)
        reserving = services.tasks.spawn(services.ledger.reserve(operation))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            call.reservation_id = ""  # it is the release's now
            services.tasks.spawn(self._release(operation.reservation_id, reserving))
            raise

    async def _release(self, reservation_id: str, reserving: "asyncio.Future[Reserved | Replayed]") -> None:
        """Release what was reserved for an app that went away meanwhile."""
        try:
            outcome = await reserving
            if isinstance(outcome, Reserved):
                reservation = outcome.reservation
                await self._services.ledger.settle(
                    Settle(
                        reservation_id=reservation.reservation_id,
                        subscriber_id=reservation.subscriber_id,
                        owner=reservation.owner,
                        close_cause=CloseCause.CLIENT_CANCELLED,
                        settlement=None,
                        now_us=self._services.clock.now_us(),
                    )
                )
        except MetergateError as exc:
            # Refused, so there is nothing to release; or the store failed, and its recovery releases (L5).
            logger.info("a request whose app went away was not reserved: %s", exc)
        finally:
            self._held.discard(reservation_id)

    # --- running ----------------------------------------------------------------------------------------------------

    def _parts(self, call: Call, plan: Plan, outcome: Reserved) -> RunParts:
        call.observer.admitted(outcome.reservation, plan.priced.prompt_tokens)
        return RunParts(
            services=self._services,
            plan=plan,
            reservation=outcome.reservation,
            tokenizer=call.offering.tokenizers.get(plan.priced.model.model_id),
            codec=call.offering.codecs.get(plan.priced.model.model_id),
            candidates=Candidates(call.offering.pool, plan.priced.model.model_id, plan.priced.model.weights()),
            deadline=call.deadline,
            observer=call.observer,
            began_seconds=call.began_seconds,
        )

    async def _serve(self, call: Call, run: Run) -> Receipt:
        call.run = run
        self._runs[run] = None
        if self._is_stopping:
            run.stop(_drained())
        try:
            return await run.serve()
        finally:
            del self._runs[run]

    async def _replay(self, outcome: Replayed, sink: Sink) -> None:
        """Write the record of a charged request; an app that does not read it is left like any other."""
        try:
            async with asyncio.timeout(self._services.limits.request_seconds_max) as patience:
                self._replays.add(patience)
                if self._is_stopping:
                    patience.reschedule(self._patience_end())
                try:
                    await self._write_replay(outcome, sink)
                finally:
                    self._replays.discard(patience)
        except TimeoutError:
            if self._is_stopping:
                raise ShuttingDown from None
            limit = f"{self._services.limits.request_seconds_max:g} seconds"
            raise DeadlineExceeded(limit=limit) from None

    async def _write_replay(self, outcome: Replayed, sink: Sink) -> None:
        charge = outcome.charge
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
        for delta in self._services.replays.deltas(charge.charge_id) or []:
            await sink.deliver(delta)
        await sink.receipt(receipt_of_charge(charge, outcome.spendable_microcredits, replayed=True))


def _start(
    verb: str,
    caller: Authorization,
    request: InferenceRequest | EmbeddingRequest,
    trace_context: Mapping[str, str],
) -> CallStart:
    return CallStart(
        verb=verb,
        caller=caller,
        model_id=request.model_id,
        request_id=request.request_id,
        trace_context=trace_context,
    )


def _refuse_hopeless(model: Model, prompt: Prompt, characters_per_token_max: int | None) -> None:
    """PromptTooLong for a prompt that is too long whatever its count is: counting it would be for nothing."""
    if characters_per_token_max is not None:
        completion_room(model, prompt.characters() // characters_per_token_max, None)


def _refuse_tools(model: Model, prompt: Prompt) -> None:
    """RequestInvalid for tools: an engine sends a tool call as raw text, each model in a form of its own."""
    if prompt.tools:
        description = f"{model.model_id} takes no tools: its calls would come as text, in a form of the model's own"
        raise RequestInvalid(Violation("tools", description))


def _drained() -> End:
    return End(cause=CloseCause.DRAINED, error=ShuttingDown())


def _deadline(time_left_seconds: float | None) -> float | None:
    """Return when, on the loop's clock, a cancel means that the app's deadline passed.

    gRPC rounds the time left up by as much as 1% on the wire, so an app's own clock cancels a little before ours.
    """
    if time_left_seconds is None:
        return None
    return asyncio.get_running_loop().time() + 0.99 * time_left_seconds - 0.05

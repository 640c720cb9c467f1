"""The use case: authorize, count, reserve, run, settle; and stop in good order."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from metergate.core.embedding import EmbeddingRequest
from metergate.core.errors import (
    DeadlineExceeded,
    LedgerDiffers,
    MetergateError,
    Overloaded,
    RequestIdConflict,
    RequestInProgress,
    ShuttingDown,
)
from metergate.core.inference import InferenceRequest, Prompt
from metergate.core.operations import Replayed, Reserved, Settle
from metergate.core.receipts import Completion, Embedded, Quote, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import Authorization
from metergate.metering.buffer import End
from metergate.metering.call import NO_TRACE, Call, call_start, loop_deadline
from metergate.metering.closing import receipt_of_charge, write_replay
from metergate.metering.deltas import whole_message
from metergate.metering.embedding import EmbeddingRun
from metergate.metering.limits import Limits
from metergate.metering.offering import Offering
from metergate.metering.plan import Plan
from metergate.metering.planning import Planner, reserve_operation
from metergate.metering.pool import Candidates
from metergate.metering.replays import ReplayBuffer
from metergate.metering.run import Run
from metergate.metering.run_parts import RunParts
from metergate.metering.services import BackgroundTasks, Services
from metergate.metering.streamed_run import StreamedRun
from metergate.metering.whole_run import WholeRun
from metergate.ports import CallStart, Clock, ContentPolicy, LedgerStore, Observer, Sink

logger = logging.getLogger(__name__)


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
        self._planner = Planner(self._services)
        self._observer = observer
        self._is_draining = False  # admit nothing more
        self._is_stopping = False  # end what runs
        self._admits = True  # False: the books differ
        self._calls = 0
        self._reservation_ids: set[str] = set()  # of those that a call, or what it left behind, will settle
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
        with self._call(call_start("StreamComplete", caller, request, trace_context), time_left_seconds) as call:
            begun = await self._begin(call, caller, request)
            if isinstance(begun, Replayed):
                await self._replay(begun, sink)
            else:
                await self._serve(call, StreamedRun(sink=sink, **begun))

    async def complete(
        self,
        caller: Authorization,
        request: InferenceRequest,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> Completion:
        """Run a request and return its whole answer, charged; raise a MetergateError if it failed."""
        with self._call(call_start("Complete", caller, request, trace_context), time_left_seconds) as call:
            begun = await self._begin(call, caller, request)
            if isinstance(begun, Replayed):
                receipt = receipt_of_charge(begun.charge, begun.spendable_microcredits, replayed=True)
                deltas = self._services.replays.deltas(begun.charge.charge_id)
            else:
                run = WholeRun(**begun)
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
        with self._call(call_start("Embed", caller, request, trace_context), time_left_seconds) as call:
            begun = await self._begin(call, caller, request)
            if isinstance(begun, Replayed):
                receipt = receipt_of_charge(begun.charge, begun.spendable_microcredits, replayed=True)
                return Embedded(embeddings=self._services.replays.embeddings(begun.charge.charge_id), receipt=receipt)
            run = EmbeddingRun(**begun)
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
        with self._call(start, None) as call:
            return (await self._planner.price(call.offering, caller, model_id, prompt, max_completion_tokens)).quote()

    async def count_inputs(
        self,
        caller: Authorization,
        model_id: str,
        inputs: tuple[str, ...],
        *,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> Quote:
        """Count texts as ``embed`` would and say what that costs; nothing is charged."""
        start = CallStart(
            verb="CountTokens", caller=caller, model_id=model_id, request_id="", trace_context=trace_context
        )
        with self._call(start, None) as call:
            return (await self._planner.price_inputs(call.offering, caller, model_id, inputs)).quote()

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
        return reservation_id in self._reservation_ids

    @property
    def running(self) -> int:
        """How many requests have a reservation now."""
        return len(self._runs)

    def _patience_end(self) -> float:
        return asyncio.get_running_loop().time() + self._services.limits.stalled_write_seconds_max

    async def settled(self) -> None:
        """Wait until no call runs and everything that calls left behind is settled."""
        await self._idle.wait()
        await self._services.tasks.wait()

    # --- admission --------------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self, start: CallStart, time_left_seconds: float | None) -> Iterator[Call]:
        """Let a call in, unless the gateway drains or is full, and see to it that it is seen to end."""
        call = Call(
            observer=self._observer.call_began(start),
            offering=self.offering,
            began_seconds=self._services.monotonic(),
            deadline=loop_deadline(time_left_seconds),
            is_streamed=start.verb == "StreamComplete",
        )
        error: BaseException | None = None

        def ended() -> None:
            call.offering.leave()
            self._reservation_ids.discard(call.reservation_id)
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

    async def _begin(
        self, call: Call, caller: Authorization, request: InferenceRequest | EmbeddingRequest
    ) -> RunParts | Replayed:
        """Plan a request and set credit aside for it; Replayed if it was charged before."""
        try:
            plan = await self._planner.plan(call.offering, caller, request)
        except MetergateError as refusal:
            return await self._charged_before(caller, request, refusal)
        outcome = await self._reserve(call, plan)
        return outcome if isinstance(outcome, Replayed) else self._parts(call, plan, outcome)

    async def _charged_before(
        self, caller: Authorization, request: InferenceRequest | EmbeddingRequest, refusal: MetergateError
    ) -> Replayed:
        """The record of a request that would be refused now, if it was charged while it was not (L4); else the refusal.

        Its model may be gone since, or its price, or the consent to use it.
        """
        services = self._services
        before = await services.ledger.find_request(
            caller.subscriber_id, caller.authorization_id, request.request_id, services.clock.now_us()
        )
        if before is None:
            raise refusal
        known = before.charge if isinstance(before, Replayed) else before
        if known.content_hash != await self._planner.content_hash(request):
            raise RequestIdConflict(request_id=request.request_id) from refusal
        if not isinstance(before, Replayed):
            raise RequestInProgress(request_id=request.request_id) from refusal
        return before

    async def _reserve(self, call: Call, plan: Plan) -> Reserved | Replayed:
        services, operation = self._services, reserve_operation(self._services, plan)
        call.reservation_id = operation.reservation_id
        self._reservation_ids.add(operation.reservation_id)
        reserving = services.tasks.spawn(services.ledger.reserve(operation, is_urgent=call.is_streamed))
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
            self._reservation_ids.discard(reservation_id)

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
                    await write_replay(sink, outcome, self._services.replays.deltas(outcome.charge.charge_id) or [])
                finally:
                    self._replays.discard(patience)
        except TimeoutError:
            if self._is_stopping:
                raise ShuttingDown from None
            limit = f"{self._services.limits.request_seconds_max:g} seconds"
            raise DeadlineExceeded(limit=limit) from None


def _drained() -> End:
    return End(cause=CloseCause.DRAINED, error=ShuttingDown())

"""One admitted request, from dispatch to receipt.

L1: a delta is handed to the app only after the capture of its cost was acknowledged; between that acknowledgement and
the write nothing is awaited. L6: whatever ends the request, it leaves through ``_close``, which settles in a task of
its own that no cancellation of the call reaches.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar, Unpack

from metergate.core.errors import (
    BackendUnavailable,
    ContentPolicyUnavailable,
    DeadlineExceeded,
    LedgerInvariantBroken,
    MetergateError,
    ShuttingDown,
    StoreUnavailable,
)
from metergate.core.inference import Delta, InferenceRequest
from metergate.core.operations import Capture, CaptureStatus, Settle, Settled
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Receipt
from metergate.core.reservation import CloseCause, Estimate
from metergate.core.rows import FinishReason
from metergate.core.usage import Usage
from metergate.metering.answer import longest_fit
from metergate.metering.answer_count import AnswerCount
from metergate.metering.bounded_answer import BoundedAnswer, estimate
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.closing import (
    CHARGED_WITHOUT_DELIVERY,
    Outcome,
    receipt_of_charge,
    receipt_of_release,
    settle_operation,
    was_settled_by,
)
from metergate.metering.deltas import length
from metergate.metering.reader import Reader
from metergate.metering.replays import Answer
from metergate.metering.run_parts import RunParts, answer_count, detokenizer_maker
from metergate.metering.transcript import Transcript
from metergate.metering.vetting import Vetting
from metergate.ports import Delivery

logger = logging.getLogger(__name__)


class Run(ABC):
    """A request that has a reservation."""

    CAPTURES_AT_SETTLING: ClassVar[bool]

    def __init__(self, **parts: Unpack[RunParts]) -> None:
        services, plan, reservation = parts["services"], parts["plan"], parts["reservation"]
        self._services = services
        self._plan = plan
        self._priced = plan.priced
        self._reservation = reservation
        self._deadline = parts["deadline"]
        self._buffer = self._make_buffer()
        self._observer = parts["observer"]
        self._reader = Reader(
            request=plan.backend_request,
            candidates=parts["candidates"],
            prompt_tokens=plan.priced.prompt_tokens,
            buffer=self._buffer,
            limits=services.limits,
            observer=self._observer,
            detokenizer=detokenizer_maker(parts),
        )
        self._vetting: Vetting | None = None
        if services.policy is not None:
            self._vetting = Vetting(
                services.policy,
                services.limits,
                observer=self._observer,
                monotonic=services.monotonic,
                reservation_id=reservation.reservation_id,
                model_id=self._priced.model.model_id,
            )
        self._slice_microcredits = self._priced.cost_max(services.limits.slice_tokens) - self._priced.cost()
        self._reserved_microcredits = reservation.reserved_microcredits
        self._captured_microcredits = reservation.captured_microcredits
        self._delivered_microcredits = 0
        # Of all that was delivered, or will be at once.
        self._answer = answer_count(parts)
        self._estimate: Estimate | None = None  # of what is captured next, if that is only a bound
        # The dearest that the answer was at any delivery: counts of a growing text may fall again, captures do not.
        self._peak = (reservation.captured_microcredits, reservation.captured_usage)
        self.transcript = Transcript()
        self.began_seconds = parts["began_seconds"]
        self._dispatch_seconds = 0.0  # when the first backend was called
        self._app_ready_seconds = 0.0  # when the last write to the app ended
        self._capture_seconds = 0.0  # how long the last capture took
        self._closing: asyncio.Future[Receipt | None] | None = None
        self._stopped: End | None = None
        self._patience: asyncio.Timeout | None = None  # with what is awaited, once the request was told to stop

    # --- life -------------------------------------------------------------------------------------------------------

    async def serve(self) -> Receipt:
        """Run to the end and return the receipt of what ended well; raise the error of what did not."""
        seconds_max = self._services.limits.request_seconds_max
        too_old = End(cause=CloseCause.STREAM_TOO_OLD, error=DeadlineExceeded(limit=f"{seconds_max:g} seconds"))
        timer = asyncio.get_running_loop().call_later(seconds_max, self.stop, too_old)
        self._dispatch_seconds = self._app_ready_seconds = self._services.monotonic()
        try:
            end = await self._run_to_end()
            receipt = await asyncio.shield(self._close(end))
            if receipt is not None:
                await self._send_receipt(receipt)
        except asyncio.CancelledError:
            self._close(End(cause=self._cause_of_cancel()))
            raise
        finally:
            timer.cancel()
        return _ended(end, receipt)

    def stop(self, end: End) -> None:
        """End the request now, or as soon as the write under way has ended or stalled for too long."""
        if self._stopped is not None:
            return
        self._stopped = end
        self._buffer.stop(end)
        self._stop_reading()
        self._limit_patience()

    def _limit_patience(self) -> None:
        if self._patience is not None and self._stopped is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + self._patience_seconds())

    async def _unless_stalled(self, work: Awaitable[End | None]) -> End | None:
        """Do work that is given up if it takes too long after ``stop``, which is the end then."""
        try:
            async with asyncio.timeout(None) as self._patience:
                self._limit_patience()
                return await work
        except TimeoutError:
            return self._stopped
        finally:
            self._patience = None

    def _cause_of_cancel(self) -> CloseCause:
        """Return why the app's side was cancelled; gRPC cancels a call both ways."""
        if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
            return CloseCause.DEADLINE_EXCEEDED
        return CloseCause.CLIENT_CANCELLED

    async def _run_to_end(self) -> End:
        try:
            end = await self._unless_stalled(self._pump())
            return end or End(cause=CloseCause.GATEWAY_ERROR, error=LedgerInvariantBroken(problem="no end"))
        except StoreUnavailable as exc:
            return End(cause=CloseCause.STORE_ERROR, error=exc)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - a defect, too, leaves through the one way out
            # Told by its type only: its text may quote a prompt (L11). The edge logs where it came from.
            logger.error("reservation %s: the gateway failed: %s", self._reservation.reservation_id, type(exc).__name__)
            return End(cause=CloseCause.GATEWAY_ERROR, error=exc if isinstance(exc, Exception) else MetergateError())

    # --- count, capture, deliver ------------------------------------------------------------------------------------

    async def _handle(self, delta: Delta) -> End | None:
        """Have a delta vetted, count it, debit it, deliver it; return the end if that was the last."""
        if self._vetting is not None:
            blocked = await self._vetting.end_before(delta)
            if blocked is not None:
                return blocked
        after = self._answer.copy()
        if after.encoded_characters(delta) > self._services.limits.counted_in_loop_characters_max:
            await asyncio.to_thread(after.add, delta)
        else:
            after.add(delta)
        end: End | None = None
        if not self._within_length(after):
            delta, after = await asyncio.to_thread(longest_fit, self._answer, delta, self._within_length)
            end = End(cause=CloseCause.FINISHED, finish_reason=FinishReason.LENGTH)
        if isinstance(after, BoundedAnswer):
            self._estimate = estimate(self._priced, after)
        peak = self._peak_with(after)
        refusal = await self._debit(*peak)
        if refusal is not None:
            delta, after = await asyncio.to_thread(longest_fit, self._answer, delta, self._within_reserved)
            end = End(cause=refusal, finish_reason=FinishReason.CREDIT_EXHAUSTED)
            if isinstance(after, BoundedAnswer):
                self._estimate = estimate(self._priced, after)
            peak = self._peak_with(after)
            if length(delta) and await self._debit(*peak) is not None:
                raise LedgerInvariantBroken(problem="a capture within the reservation was refused")
        characters = length(delta)
        if characters:
            self._observe(characters)
            self._answer, self._peak = after, peak
            self.transcript.append(delta)
            await self._deliver(delta)
            self._app_ready_seconds = self._services.monotonic()
        return end

    def _observe(self, characters: int) -> None:
        """Tell how long the backend and the gateway took for what is delivered now."""
        arrival, now = self._buffer.arrival_seconds, self._services.monotonic()
        is_first = not self.transcript
        admission_seconds = self._dispatch_seconds - self.began_seconds if is_first else 0.0
        self._observer.delivered(
            Delivery(
                characters=characters,
                is_first=is_first,
                backend_seconds=max(0.0, arrival - (self._dispatch_seconds if is_first else self._app_ready_seconds)),
                gateway_seconds=admission_seconds + now - max(arrival, self._app_ready_seconds),
                capture_seconds=self._capture_seconds,
            )
        )

    def _within_length(self, counter: AnswerCount) -> bool:
        return counter.completion_tokens + counter.reasoning_tokens <= self._priced.completion_tokens_max

    def _within_reserved(self, counter: AnswerCount) -> bool:
        return self._peak_with(counter)[0] <= self._reserved_microcredits

    def _peak_with(self, counter: AnswerCount) -> tuple[int, Usage]:
        """Return what the answer must be paid for when it is delivered as counted: microcredits, and of what."""
        tokens = counter.completion_tokens, counter.reasoning_tokens
        microcredits = self._priced.cost(*tokens)
        return (microcredits, self._priced.usage(*tokens)) if microcredits > self._peak[0] else self._peak

    async def _capture(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        """Capture up to the target; return why that was refused, or None if it is captured."""
        wanted = self._reserved_microcredits
        if target_microcredits + self._slice_microcredits // 2 > wanted:
            wanted = min(target_microcredits + self._slice_microcredits, self._reservation.limit_microcredits)
        began_seconds = self._services.monotonic()
        captured = await self._services.ledger.capture(
            Capture(
                reservation_id=self._reservation.reservation_id,
                subscriber_id=self._reservation.subscriber_id,
                owner=self._reservation.owner,
                target_microcredits=target_microcredits,
                target_usage=usage,
                wanted_microcredits=wanted,
                delivered_microcredits=self._delivered_microcredits,
                estimate=self._estimate,
                now_us=self._services.clock.now_us(),
            )
        )
        self._capture_seconds = self._services.monotonic() - began_seconds
        if captured.status is not CaptureStatus.OPEN:
            # The store was opened again, and its recovery has settled this reservation.
            raise StoreUnavailable
        self._reserved_microcredits = captured.reserved_microcredits
        self._captured_microcredits = captured.captured_microcredits
        if captured.captured_microcredits >= target_microcredits:
            return None
        if captured.refusal is None:
            raise LedgerInvariantBroken(problem="a capture was neither made nor refused")
        return captured.refusal

    # --- closing ----------------------------------------------------------------------------------------------------

    def _close(self, end: End) -> "asyncio.Future[Receipt | None]":
        """Begin to settle; the first end stands. What comes is the receipt, or None if the store failed.

        Then its recovery settles (L5), or has: what that charged need not cover a whole answer that is not delivered
        yet. So it is not ours to deliver.
        """
        if self._closing is None:
            self._stop_reading()
            # Nobody completes the one of these futures before the other is begun.
            operation = self._settle_operation(end)
            spawn = self._services.tasks.spawn
            settling = spawn(self._services.ledger.settle(operation))
            self._closing = spawn(asyncio.get_running_loop().create_future())
            settling.add_done_callback(partial(self._settled, end, operation))
        return self._closing

    def when_settled(self, then: Callable[[], None]) -> None:
        """Call ``then`` once nothing is left to settle: at once, or after what a cancelled call left behind."""
        if self._closing is None or self._closing.done():
            then()
        else:
            self._closing.add_done_callback(lambda _: then())

    def _settle_operation(self, end: End) -> Settle:
        outcome = Outcome(
            end=end,
            usage=self._usage_to_charge(end),
            usage_reported=self._reader.usage_reported,
            report_is_whole=self._reader.has_finished,
            stop=self._plan.request.sampling.stop if isinstance(self._plan.request, InferenceRequest) else (),
            attempts=self._reader.attempts,
            captures_at_settling=self.CAPTURES_AT_SETTLING,
        )
        return settle_operation(self._services, self._priced, self._reservation, outcome)

    def _settled(self, end: End, operation: Settle, settling: "asyncio.Future[Settled]") -> None:
        assert self._closing is not None
        try:
            self._closing.set_result(self._receipt(end, operation, settling))
        except BaseException as exc:  # noqa: BLE001 - a defect, or a store that gave up, must not leave the app waiting
            self._closing.set_exception(exc)

    def _receipt(self, end: End, operation: Settle, settling: "asyncio.Future[Settled]") -> Receipt | None:
        try:
            settled = settling.result()
        except MetergateError as exc:
            logger.error("reservation %s is left to recovery: %s", self._reservation.reservation_id, exc)
            return None
        self._observer.settled(operation, settled)
        if not was_settled_by(operation, settled):
            logger.error("reservation %s was settled by recovery", self._reservation.reservation_id)
            return None
        if settled.charge is None:
            return receipt_of_release(self._reservation, self._priced, settled.spendable_microcredits, end.cause)
        if self._was_delivered(end):
            self._services.replays.put(settled.charge.charge_id, self._answer_to_keep())
        return receipt_of_charge(settled.charge, settled.spendable_microcredits, replayed=False)

    def _answer_to_keep(self) -> Answer:
        """Return what a replay of the request is answered with."""
        return self.transcript.deltas()

    def _usage_to_charge(self, end: End) -> Usage | None:
        if isinstance(self._answer, BoundedAnswer):
            return self._bounded_usage(self._answer, end)
        if self._was_delivered(end):
            return self._priced.usage(self._answer.completion_tokens, self._answer.reasoning_tokens)
        was_dispatched = bool(self._reader.attempts)
        return self._priced.usage() if was_dispatched and end.cause in CHARGED_WITHOUT_DELIVERY else None

    def _bounded_usage(self, answer: BoundedAnswer, end: End) -> Usage | None:
        """Return what to charge of a request that its backend counts, up to what was captured for it."""
        reported = self._reader.usage_reported
        if self._was_delivered(end):
            is_whole = end.cause is CloseCause.FINISHED and self._reader.has_finished
            usage = reported if is_whole and reported is not None else estimate(self._priced, answer).usage
        elif self._reader.attempts and end.cause in CHARGED_WITHOUT_DELIVERY:
            is_whole = end.cause is CloseCause.FINISHED
            usage = reported if is_whole and reported is not None else self._priced.estimate(reported, 0, 0).usage
        else:
            return None
        microcredits, captured = self._peak
        return usage if rate_ceil(usage, self._priced.rate_card) <= microcredits else captured

    # --- what differs between a stream and a whole answer -----------------------------------------------------------

    @abstractmethod
    def _make_buffer(self) -> DeltaBuffer:
        """Where the reader puts the answer."""

    @abstractmethod
    async def _pump(self) -> End:
        """Read the answer and hand it on; return how it ended."""

    @abstractmethod
    def _stop_reading(self) -> None:
        """Read no more of the answer."""

    @abstractmethod
    def _patience_seconds(self) -> float:
        """How long what is awaited may take once the request was told to stop."""

    @abstractmethod
    async def _debit(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        """Make sure that so much is paid, the price of ``usage``; return why it cannot be, or None."""

    @abstractmethod
    async def _deliver(self, delta: Delta) -> None:
        """Hand a paid delta on."""

    @abstractmethod
    def _was_delivered(self, end: End) -> bool:
        """Whether the answer so far reached the app, or will."""

    @abstractmethod
    async def _send_receipt(self, receipt: Receipt) -> None:
        """Tell the app what it was charged."""


def _ended(end: End, receipt: Receipt | None) -> Receipt:
    """Return the receipt of a request that ended well; raise the error, with its charge's name, of one that did not."""
    if receipt is None:
        raise end.error or StoreUnavailable()
    if end.error is None:
        return receipt
    if isinstance(end.error, BackendUnavailable | ContentPolicyUnavailable | DeadlineExceeded | ShuttingDown):
        end.error.charge = receipt.charge_name()
    raise end.error

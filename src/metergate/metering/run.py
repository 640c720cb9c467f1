"""One admitted request, from dispatch to receipt.

L1: a delta is handed to the app only after the capture of its cost was acknowledged; between that acknowledgement and
the write nothing is awaited. L6: whatever ends the request, it leaves through ``_close``.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypedDict, Unpack

from metergate.core.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    LedgerInvariantBroken,
    MetergateError,
    ShuttingDown,
    StoreUnavailable,
)
from metergate.core.inference import BackendRequest, Delta
from metergate.core.operations import Capture, CaptureStatus
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Receipt
from metergate.core.reservation import CloseCause, Reservation
from metergate.core.rows import FinishReason
from metergate.core.usage import Usage
from metergate.metering.answer import AnswerCounter, longest_fit
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.closing import Outcome, receipt_of_charge, receipt_of_release, settle, settle_operation
from metergate.metering.deltas import length
from metergate.metering.plan import Plan, usage_of
from metergate.metering.reader import Reader
from metergate.metering.services import Services
from metergate.ports import Backend, Tokenizer

logger = logging.getLogger(__name__)

# A request that ended in one of these ways before anything was delivered is charged its prompt all the same: the
# backend did the work (an empty answer is an answer too). Other ends before the first delivery charge nothing.
CHARGED_WITHOUT_DELIVERY = frozenset(
    {
        CloseCause.FINISHED,
        CloseCause.CREDIT_EXHAUSTED,
        CloseCause.CAP_REACHED,
        CloseCause.CREDIT_LIMIT_REACHED,
        CloseCause.CLIENT_CANCELLED,
        CloseCause.DEADLINE_EXCEEDED,
    }
)


class RunParts(TypedDict):
    """What a run is made of."""

    services: Services
    plan: Plan
    reservation: Reservation
    tokenizer: Tokenizer
    backends: Sequence[Backend]
    deadline: float | None  # on the loop's clock; None: the app set none


class Run(ABC):
    """A request that holds a reservation."""

    CAPTURES_AT_SETTLING: ClassVar[bool]

    def __init__(self, **parts: Unpack[RunParts]) -> None:
        services, plan, reservation = parts["services"], parts["plan"], parts["reservation"]
        limits = services.limits
        self._services = services
        self._plan = plan
        self._reservation = reservation
        self._deadline = parts["deadline"]
        self._buffer = DeltaBuffer(
            read_ahead_characters_max=limits.read_ahead_characters_max,
            delivery_characters_max=limits.delivery_characters_max,
        )
        self._reader = Reader(
            request=BackendRequest(
                model_id=plan.model.model_id,
                prompt=plan.request.prompt,
                sampling=plan.request.sampling,
                response_format=plan.request.response_format,
                max_completion_tokens=plan.completion_tokens_max,
            ),
            backends=parts["backends"],
            buffer=self._buffer,
            limits=limits,
        )
        self._limit_microcredits = reservation.limit_microcredits
        self._slice_microcredits = plan.cost_max(limits.slice_tokens) - plan.cost(0)
        self._reserved_microcredits = reservation.reserved_microcredits
        self._captured_microcredits = reservation.captured_microcredits
        self._delivered_microcredits = 0
        self._answer = AnswerCounter(parts["tokenizer"])
        # The most that each class counted to at any delivery: what was captured is the price of these.
        self._completion_tokens_peak = 0
        self._reasoning_tokens_peak = 0
        self.deltas: list[Delta] = []  # of the answer, in the order of delivery
        self._task: asyncio.Task[object] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[Receipt | None] | None = None
        self._aborted: End | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def serve(self) -> Receipt:
        """Run to the end and return the receipt of what ended well; raise the error of what did not."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._reading = self._services.tasks.spawn(self._reader.run())
        seconds_max = self._services.limits.request_seconds_max
        too_old = End(cause=CloseCause.STREAM_TOO_OLD, error=DeadlineExceeded(limit=f"{seconds_max:g} seconds"))
        timer = loop.call_later(seconds_max, self.stop, too_old)
        try:
            end = await self._run_to_end()
            receipt = await asyncio.shield(self._close(end))
            return await self._tell(end, receipt)
        except asyncio.CancelledError:
            self._close(self._aborted or End(cause=self._cause_of_cancel()))
            if self._aborted is None or self._aborted.error is None or self._task is None or self._task.uncancel():
                raise
            # Only ``stop`` cancelled the task, because a write stalled: the call itself lives on.
            raise self._aborted.error from None
        finally:
            timer.cancel()
            self._task = None

    def stop(self, end: End) -> None:
        """End the request soon: at once if it is not in the middle of a write, else when that ends or stalls."""
        self._buffer.stop(end)
        asyncio.get_running_loop().call_later(self._services.limits.stalled_write_seconds_max, self._abort, end)

    def _abort(self, end: End) -> None:
        if self._task is not None and self._aborted is None:
            self._aborted = end
            self._task.cancel()

    def _cause_of_cancel(self) -> CloseCause:
        """Return why the app's side was cancelled; gRPC cancels a call both ways."""
        if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
            return CloseCause.DEADLINE_EXCEEDED
        return CloseCause.CLIENT_CANCELLED

    async def _run_to_end(self) -> End:
        try:
            await self._begin()
            while True:
                item = await self._buffer.take()
                end = item if isinstance(item, End) else await self._handle(item)
                if end is not None:
                    return end
        except StoreUnavailable as exc:
            return End(cause=CloseCause.STORE_ERROR, error=exc)
        except Exception as exc:  # noqa: BLE001 - a defect, too, leaves through the one way out
            # Told by its type only: its text may quote a prompt (L11). The edge logs where it came from.
            logger.error("reservation %s: the gateway failed: %s", self._reservation.reservation_id, type(exc).__name__)
            return End(cause=CloseCause.GATEWAY_ERROR, error=exc)

    # --- count, capture, deliver ------------------------------------------------------------------------------------

    async def _handle(self, delta: Delta) -> End | None:
        """Count a delta, debit it, deliver it; return the end if that was the last."""
        after = self._answer.copy()
        await after.add_off_loop(delta, self._services.limits.counted_in_loop_characters_max)
        end: End | None = None
        if not self._within_length(after):
            delta, after = await asyncio.to_thread(longest_fit, self._answer, delta, self._within_length)
            end = End(cause=CloseCause.FINISHED, finish_reason=FinishReason.LENGTH)
        refusal = await self._debit(after)
        if refusal is not None:
            delta, after = await asyncio.to_thread(longest_fit, self._answer, delta, self._within_reserved)
            end = End(cause=refusal, finish_reason=FinishReason.CREDIT_EXHAUSTED)
            if length(delta) and await self._debit(after) is not None:
                raise LedgerInvariantBroken(problem="a capture within the reservation was refused")
        self._answer = after
        if length(delta):
            self._completion_tokens_peak, self._reasoning_tokens_peak = self._peaks(after)
            self.deltas.append(delta)
            await self._deliver(delta)
        return end

    def _within_length(self, counter: AnswerCounter) -> bool:
        return counter.completion_tokens + counter.reasoning_tokens <= self._plan.completion_tokens_max

    def _within_reserved(self, counter: AnswerCounter) -> bool:
        return rate_ceil(self._peak_usage(counter), self._plan.rate_card) <= self._reserved_microcredits

    def _peaks(self, counter: AnswerCounter) -> tuple[int, int]:
        return (
            max(self._completion_tokens_peak, counter.completion_tokens),
            max(self._reasoning_tokens_peak, counter.reasoning_tokens),
        )

    def _peak_usage(self, counter: AnswerCounter) -> Usage:
        return usage_of(self._plan.prompt_tokens, *self._peaks(counter))

    async def _capture(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        """Capture up to the target; return why that was refused, or None if it is captured."""
        wanted = self._reserved_microcredits
        if target_microcredits + self._slice_microcredits // 2 > wanted:
            wanted = min(target_microcredits + self._slice_microcredits, self._limit_microcredits)
        captured = await self._services.ledger.capture(
            Capture(
                reservation_id=self._reservation.reservation_id,
                subscriber_id=self._reservation.subscriber_id,
                owner=self._reservation.owner,
                target_microcredits=target_microcredits,
                target_usage=usage,
                wanted_microcredits=wanted,
                delivered_microcredits=self._delivered_microcredits,
                now_us=self._services.clock.now_us(),
            )
        )
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

    def _close(self, end: End) -> "asyncio.Task[Receipt | None]":
        """Begin to settle; the first end stands."""
        if self._closing is None:
            if self._reading is not None:
                self._reading.cancel()
            self._closing = self._services.tasks.spawn(self._settle(end))
        return self._closing

    async def _settle(self, end: End) -> Receipt | None:
        outcome = Outcome(
            end=end,
            usage_delivered=self._usage_to_charge(end),
            usage_reported=self._reader.usage_reported,
            attempts=tuple(self._reader.attempts),
            captures_at_settling=self.CAPTURES_AT_SETTLING,
        )
        operation = settle_operation(self._services, self._plan, self._reservation, outcome)
        try:
            settled = await settle(self._services, operation)
        except StoreUnavailable:
            return None
        except MetergateError as exc:
            logger.error("reservation %s could not be settled: %s", self._reservation.reservation_id, exc)
            return None
        if settled.charge is None:
            return receipt_of_release(self._plan, settled.spendable_microcredits, end.cause)
        self._services.replays.put(settled.charge.charge_id, self.deltas)
        return receipt_of_charge(settled.charge, settled.spendable_microcredits, replayed=False)

    def _usage_to_charge(self, end: End) -> Usage | None:
        if self._was_delivered(end):
            answer = self._answer
            return usage_of(self._plan.prompt_tokens, answer.completion_tokens, answer.reasoning_tokens)
        return usage_of(self._plan.prompt_tokens) if end.cause in CHARGED_WITHOUT_DELIVERY else None

    async def _tell(self, end: End, receipt: Receipt | None) -> Receipt:
        if receipt is None:
            raise end.error or StoreUnavailable()
        await self._send_receipt(receipt)
        if end.error is None:
            return receipt
        if isinstance(end.error, BackendUnavailable | DeadlineExceeded | ShuttingDown):
            end.error.charge = receipt.charge_name()
        raise end.error

    # --- what differs between a stream and a whole answer -----------------------------------------------------------

    @abstractmethod
    async def _begin(self) -> None:
        """Tell the app that its request was admitted."""

    @abstractmethod
    async def _debit(self, after: AnswerCounter) -> CloseCause | None:
        """Make sure that the answer counted by ``after`` is paid; return why it cannot be, or None."""

    @abstractmethod
    async def _deliver(self, delta: Delta) -> None:
        """Hand a paid delta on."""

    @abstractmethod
    def _was_delivered(self, end: End) -> bool:
        """Whether the answer so far reached the app, or will."""

    @abstractmethod
    async def _send_receipt(self, receipt: Receipt) -> None:
        """Tell the app what it was charged."""

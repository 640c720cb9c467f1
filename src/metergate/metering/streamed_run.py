"""A request whose answer is delivered piece by piece."""

import asyncio
from typing import ClassVar, Unpack

from metergate.core.inference import Delta
from metergate.core.receipts import Admission, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.usage import Usage
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.run import Run
from metergate.metering.run_parts import RunParts
from metergate.ports import Sink


class StreamedRun(Run):
    """A request whose answer is delivered piece by piece, each captured before it is written.

    It is read in a task of its own: what arrives while a capture or a write is under way becomes the next delivery.
    """

    CAPTURES_AT_SETTLING: ClassVar[bool] = False

    def __init__(self, *, sink: Sink, **parts: Unpack[RunParts]) -> None:
        super().__init__(**parts)
        self._sink = sink
        self._reading: asyncio.Future[None] | None = None

    def _make_buffer(self) -> DeltaBuffer:
        limits = self._services.limits
        return DeltaBuffer(
            read_ahead_characters_max=limits.read_ahead_characters_max,
            delivery_characters_max=limits.delivery_characters_max,
            monotonic=self._services.monotonic,
        )

    async def _pump(self) -> End:
        self._reading = self._services.tasks.spawn(self._reader.run())
        await self._sink.admit(
            Admission(
                subscriber_id=self._plan.caller.subscriber_id,
                reservation_id=self._reservation.reservation_id,
                prompt_tokens=self._priced.prompt_tokens,
                model_id=self._priced.model.model_id,
                rate_card_id=self._priced.rate_card.rate_card_id,
            )
        )
        while True:
            item = await self._buffer.take()
            end = item if isinstance(item, End) else await self._handle(item)
            if end is not None:
                return end

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def _patience_seconds(self) -> float:
        return self._services.limits.stalled_write_seconds_max

    async def _debit(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        return await self._capture(target_microcredits, usage)

    async def _deliver(self, delta: Delta) -> None:
        self._delivered_microcredits = self._captured_microcredits
        await self._sink.deliver(delta)

    def _was_delivered(self, end: End) -> bool:
        return bool(self.transcript)

    async def _send_receipt(self, receipt: Receipt) -> None:
        async def send() -> None:
            await self._sink.receipt(receipt)

        await self._unless_stalled(send())

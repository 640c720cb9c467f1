"""A request whose answer is delivered piece by piece."""

from typing import ClassVar, Unpack

from metergate.core.inference import Delta
from metergate.core.receipts import Admission, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.usage import Usage
from metergate.metering.buffer import End
from metergate.metering.run import Run, RunParts
from metergate.ports import Sink


class StreamedRun(Run):
    """A request whose answer is delivered piece by piece, each captured before it is written."""

    CAPTURES_AT_SETTLING: ClassVar[bool] = False

    def __init__(self, *, sink: Sink, **parts: Unpack[RunParts]) -> None:
        super().__init__(**parts)
        self._sink = sink

    async def _begin(self) -> None:
        await self._sink.admit(
            Admission(
                subscriber_id=self._plan.caller.subscriber_id,
                reservation_id=self._reservation.reservation_id,
                prompt_tokens=self._priced.prompt_tokens,
                model_id=self._priced.model.model_id,
                rate_card_id=self._priced.rate_card.rate_card_id,
            )
        )

    async def _debit(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        return await self._capture(target_microcredits, usage)

    async def _deliver(self, delta: Delta) -> None:
        self._delivered_microcredits = self._captured_microcredits
        await self._sink.deliver(delta)

    def _was_delivered(self, end: End) -> bool:
        return bool(self.transcript)

    async def _send_receipt(self, receipt: Receipt) -> None:
        await self._sink.receipt(receipt)

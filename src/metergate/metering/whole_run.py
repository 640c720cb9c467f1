"""A request whose answer is delivered at once."""

from typing import ClassVar

from metergate.core.inference import Delta
from metergate.core.receipts import Receipt
from metergate.core.reservation import CloseCause
from metergate.core.usage import Usage
from metergate.metering.buffer import End
from metergate.metering.run import Run

# The app is not there to take an answer.
GONE = frozenset({CloseCause.CLIENT_CANCELLED, CloseCause.DEADLINE_EXCEEDED})


class WholeRun(Run):
    """A request whose answer is delivered at once, after it was settled; until then, nothing is delivered.

    So what the reservation covers need not be captured piece by piece: the settlement captures it.
    """

    CAPTURES_AT_SETTLING: ClassVar[bool] = True

    async def _begin(self) -> None:
        return

    async def _debit(self, target_microcredits: int, usage: Usage) -> CloseCause | None:
        if target_microcredits <= self._reserved_microcredits:
            return None
        return await self._capture(target_microcredits, usage)

    async def _deliver(self, delta: Delta) -> None:
        return

    def _was_delivered(self, end: End) -> bool:
        return end.error is None and end.cause not in GONE

    async def _send_receipt(self, receipt: Receipt) -> None:
        return

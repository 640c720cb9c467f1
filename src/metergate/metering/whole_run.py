"""A request whose answer is delivered at once."""

from typing import ClassVar

from metergate.core.inference import Delta
from metergate.core.receipts import Receipt
from metergate.core.reservation import CloseCause
from metergate.core.usage import Usage
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.run import Run

# The app is not there to take an answer.
GONE = frozenset({CloseCause.CLIENT_CANCELLED, CloseCause.DEADLINE_EXCEEDED})

# An answer is counted, and its credit set aside, each time that so much more of it came: often enough that a backend
# writes little that cannot be paid for, and most answers that programs ask for (a label, a line of JSON) are counted
# once.
COUNTED_CHARACTERS = 512


class _Cut(Exception):
    """The answer ends here, whatever else its backend writes."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


class WholeRun(Run):
    """A request whose answer is delivered at once, after it was settled; until then, nothing is delivered.

    So what the reservation covers need not be captured piece by piece: the settlement captures it. And nothing is done
    while the answer comes but reading it, so one task does both.
    """

    CAPTURES_AT_SETTLING: ClassVar[bool] = True

    def _make_buffer(self) -> DeltaBuffer:
        limits = self._services.limits
        return DeltaBuffer(
            read_ahead_characters_max=min(COUNTED_CHARACTERS, limits.read_ahead_characters_max),
            delivery_characters_max=limits.delivery_characters_max,
            monotonic=self._services.monotonic,
        )

    async def _pump(self) -> End:
        try:
            end = await self._reader.read(empty=self._handle_all)
            await self._handle_all()
        except _Cut as cut:
            return cut.end
        return end

    async def _handle_all(self) -> None:
        """Count and pay for what was read; ``_Cut`` if the answer ends with it."""
        while (delta := self._buffer.take_now()) is not None:
            end = await self._handle(delta)
            if end is not None:
                raise _Cut(end)

    def _stop_reading(self) -> None:
        return

    def _patience_seconds(self) -> float:
        return 0.0

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

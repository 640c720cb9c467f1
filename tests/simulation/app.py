"""The app's end of a stream."""

from fakes import MemoryLedgerStore
from metering_world import CARD, usage

from metergate.core.inference import Delta
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission, Receipt
from simulation.luck import Luck, require
from simulation.unreliable_backend import UnreliablePolicy


class App:
    """The app's end of one stream: it keeps what it gets, and checks L1 at the instant of each delivery."""

    def __init__(self, luck: Luck, ledger: MemoryLedgerStore, policy: UnreliablePolicy | None, request_id: str) -> None:
        self._luck = luck
        self._ledger = ledger
        self._policy = policy
        self._request_id = request_id
        self._read_seconds_max = luck.random.choice((0.0, 0.1, 2.0))
        self.admission: Admission | None = None
        self.text = ""
        self.receipts: list[Receipt] = []

    async def admit(self, admission: Admission) -> None:
        self.admission = admission
        await self._luck.pause(self._read_seconds_max)

    async def deliver(self, delta: Delta) -> None:
        self.text += delta.content
        self._luck.note(f"{self._request_id} got {delta.content!r}")
        assert self.admission is not None
        reservation = self._ledger.books.reservations.rows[self.admission.reservation_id]
        cost = rate_ceil(usage(self.admission.prompt_tokens, self.text), CARD)
        captured = reservation.captured_microcredits
        is_debited = cost <= captured <= reservation.reserved_microcredits
        require(is_debited, f"{self._request_id} got {cost} microcredits of {captured} captured")
        if self._policy is not None:
            allowed = self._policy.allowed[self.admission.reservation_id]
            require(allowed.startswith(self.text), f"{self._request_id} got {self.text!r}, allowed is {allowed!r}")
        await self._luck.pause(self._read_seconds_max)

    async def receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)
        await self._luck.pause(self._read_seconds_max)

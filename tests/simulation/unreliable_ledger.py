"""A ledger whose answers come late, twice, or not at all, and which checks itself after every commit."""

from fakes import FakeClock, MemoryLedgerStore

from metergate.core.batches import Operation, Outcome
from metergate.core.operations import Captured, Reserved, Settled
from metergate.core.rows import Correction
from simulation.luck import Luck, require


class UnreliableLedger(MemoryLedgerStore):
    """Its answers come late, twice, or not at all."""

    def __init__(self, luck: Luck, clock: FakeClock, fault_probability: float) -> None:
        super().__init__(clock=clock)
        self._luck = luck
        self._fault_probability = fault_probability
        self.has_failed = False
        self.is_reliable = True  # while the world is set up, and when it is looked at

    async def _run(self, operation: Operation) -> Outcome:
        if self.is_reliable:
            return await super()._run(operation)
        luck = self._luck
        await luck.pause(0.5)
        if luck.happens(self._fault_probability):
            self.has_failed = True
            self.fail_next(1, after_commit=luck.happens(0.5))
        epoch = self.owner.epoch
        outcome = await super()._run(operation)
        self._check_nothing_is_negative()
        luck.note(f"{type(operation).__name__} {type(outcome).__name__}")
        if luck.happens(0.1):
            again = await super()._run(operation)
            if self.owner.epoch == epoch:  # else recovery may have closed it in between
                self._check_same(operation, outcome, again)
        await luck.pause(0.5)
        return outcome

    def _check_nothing_is_negative(self) -> None:
        """L2, after every commit."""
        for grant in self.books.grants.rows.values():
            require(0 <= grant.remaining_microcredits <= grant.amount_microcredits, f"{grant}")
        for row in self.open_reservations():
            require(0 <= row.captured_microcredits <= row.reserved_microcredits, f"{row}")

    def _check_same(self, operation: Operation, first: Outcome, second: Outcome) -> None:
        """L4: the same operation twice changes nothing and is answered as it first was."""
        match first, second:
            case Reserved(), Reserved():
                is_same = first.reservation.reservation_id == second.reservation.reservation_id
            case Captured(), Captured():
                is_same = (first.status, first.captured_microcredits) == (second.status, second.captured_microcredits)
                # Between the two, others may have spent what the first could not have, or given back: only it may grow.
                is_same = is_same or second.captured_microcredits > first.captured_microcredits
            case Settled(), Settled():
                is_same = first.charge == second.charge
            case Correction(), Correction():
                is_same = first == second
            case _:
                is_same = type(first) is type(second)
        require(is_same, f"{operation} was answered with {first}, then with {second}")

"""Storage that fails at a point of one run of work, and what must be found afterwards."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from ledger_rows import differences

from durability.cuts import LEDGER, open_store
from durability.disk import FULL, IO_ERROR_SYNC, IO_ERROR_WRITE, OK, Kind, no_fault, watched
from durability.workload import Fact, Work, check_books, trying
from metergate.stores.sqlite import SqliteLedgerStore

ROUNDS = 6

WAYS: Mapping[str, tuple[Kind, int]] = {
    "no room": (Kind.WRITE, FULL),
    "no write": (Kind.WRITE, IO_ERROR_WRITE),
    "no sync": (Kind.SYNC, IO_ERROR_SYNC),
}


class FailsAt:
    """A fault that strikes at the n-th thing of its kind, and for so many of them."""

    def __init__(self, kind: Kind, code: int, first: int, count: int) -> None:
        self._kind, self._code, self._range = kind, code, range(first, first + count)
        self.seen = 0

    def __call__(self, kind: Kind, name: str) -> int:
        if kind is not self._kind or name.endswith("-shm"):
            return OK
        self.seen += 1
        return self._code if self.seen - 1 in self._range else OK


async def work_with(folder: Path, fault: FailsAt) -> int:
    """Work while the fault strikes, then look at the books; how many operations failed."""
    await asyncio.to_thread(folder.mkdir)
    facts: list[Fact] = []
    with watched(folder) as disk:
        store = await open_store(folder / LEDGER)
        work = Work(1, facts.append)
        await work.set_up(store)
        disk.fault = fault
        failed = await work.rounds(store, ROUNDS)
        disk.fault = no_fault
        assert await trying(store.check()), "it did not come back by itself"
        await close_and_check(folder, store, facts)
    return failed


async def close_and_check(folder: Path, store: SqliteLedgerStore, facts: list[Fact]) -> None:
    """The books add up now, and at the next start they have all that was acknowledged."""
    assert await differences(store) == []
    await store.close()
    heir = await open_store(folder / LEDGER)
    await check_books(heir, facts)
    await heir.close()

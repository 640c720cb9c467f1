"""Storage fails under the store at every point: it fails closed, comes back by itself, and the books add up (L8)."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ledger_rows import a_capture, a_grant, a_reserve, a_settle, available, differences, open_wallet, reserve

from durability import workload
from durability.cuts import LEDGER, open_store
from durability.disk import IO_ERROR_WRITE, OK, Disk, Kind, no_fault, watched
from durability.faults import WAYS, FailsAt, close_and_check, work_with
from durability.workload import Charged, Debited, Fact, Work
from metergate.core.errors import StoreUnavailable
from metergate.core.operations import Captured, CaptureStatus, Replayed
from metergate.ports import ChargeFilter
from metergate.stores import group_commit
from metergate.stores.sqlite import SqliteLedgerStore

# Points at which storage fails, of each way of failing; ``make soak`` has every one.
POINTS = 12


@pytest.fixture(autouse=True)
def _reopened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MAX", 0.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 7])
async def test_wherever_storage_fails_nothing_acknowledged_is_lost_and_it_comes_back(
    fast_folder: Path, way: str, count: int
) -> None:
    kind, code = WAYS[way]
    untroubled = FailsAt(kind, code, 0, 0)
    assert await work_with(fast_folder / "untroubled", untroubled) == 0
    step = max(1, untroubled.seen // POINTS)
    troubled = [
        await work_with(fast_folder / f"{first}", FailsAt(kind, code, first, count))
        for first in range(0, untroubled.seen, step)
    ]
    assert sum(failed > 0 for failed in troubled) > len(troubled) // 2, "the faults hardly struck"


async def test_a_store_that_cannot_be_written_refuses_everything_and_serves_when_it_can_be(fast_folder: Path) -> None:
    """As on a file system that the kernel made read-only: every write fails, for a while."""
    facts: list[Fact] = []
    with watched(fast_folder) as disk:
        store = await open_store(fast_folder / LEDGER)
        work = Work(2, facts.append)
        await work.set_up(store)
        await work.rounds(store, 2)
        known = len(facts)
        disk.fault = lambda kind, _: IO_ERROR_WRITE if kind is Kind.WRITE else OK
        for _ in range(3):
            assert await work.rounds(store, 1) >= workload.STREAMS_AT_ONCE
            with pytest.raises(StoreUnavailable):
                await store.check()
        assert len(facts) == known, "something was acknowledged that could not be written"
        disk.fault = no_fault
        await store.check()
        assert await work.rounds(store, 2) == 0
        await close_and_check(fast_folder, store, facts)


@contextmanager
def held_sync(disk: Disk) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Syncs of the WAL begin, and do not end until told to."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(kind: Kind, name: str) -> int:
        if kind is Kind.SYNC and name.endswith("-wal"):
            begun.set()
            assert go_on.wait(20)
        return OK

    disk.fault = wait
    try:
        yield begun, go_on
    finally:
        go_on.set()
        disk.fault = no_fault


async def test_while_a_commit_takes_its_time_nothing_of_it_is_acknowledged_and_the_rest_goes_on(
    fast_folder: Path,
) -> None:
    with watched(fast_folder) as disk:
        store = await open_store(fast_folder / LEDGER)
        await open_wallet(store, a_grant())
        await reserve(store)
        with held_sync(disk) as (begun, go_on):
            capturing = asyncio.ensure_future(store.capture(a_capture(50, owner=store.owner)))
            await asyncio.to_thread(begun.wait, 20)
            granting = asyncio.create_task(store.add_grant(a_grant("more")))
            assert await available(store) == 900, "reading goes on"
            assert not capturing.done()
            assert not granting.done()
            go_on.set()
            assert (await capturing).captured_microcredits == 50
            await granting
        assert await available(store) == 1_900
        assert await differences(store) == []
        await store.close()


def lose_next_answer(store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch is committed, and its caller is told that the store failed."""
    commit = store._commits._commit

    def committed_but_lost(operations: object) -> list[object]:
        monkeypatch.setattr(store._commits, "_commit", commit)
        commit(operations)  # type: ignore[arg-type]
        store._writer._fail(OSError("the answer was lost"))
        raise StoreUnavailable

    monkeypatch.setattr(store._commits, "_commit", committed_but_lost)


async def ask(store: SqliteLedgerStore, verb: str, attempt: int = 1) -> object:
    """The same each time, as an app's retry is: a reservation is a new one, of the same request."""
    if verb == "reserve":
        return await store.reserve(a_reserve(f"new-{attempt}", request_id="new", owner=store.owner))
    if verb == "capture":
        return await store.capture(a_capture(50, owner=store.owner))
    if verb == "settle":
        return await store.settle(a_settle(9, owner=store.owner))
    return await store.add_grant(a_grant("more"))


@pytest.mark.parametrize("verb", ["reserve", "capture", "settle", "grant"])
async def test_a_retry_after_an_answer_that_was_lost_does_nothing_twice(
    fast_folder: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(fast_folder / LEDGER)
    await open_wallet(store, a_grant())
    await reserve(store)
    lose_next_answer(store, monkeypatch)
    with pytest.raises(StoreUnavailable):
        await ask(store, verb)
    await store.check()
    again = await ask(store, verb, 2)
    charges = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    charged = {charge.reservation_id: charge.charged_microcredits for charge in charges}
    match verb:
        case "capture":  # recovery has settled the stream at what was captured, delivered or not
            assert isinstance(again, Captured)
            assert again.status is CaptureStatus.CLOSED
            assert charged == {"res-1": 50}
        case "settle":
            assert charged == {"res-1": 9}
        case "grant":
            assert await available(store) == 2_000 - 9
        case _:  # recovery has settled this one too, at its prompt: the request has run
            assert isinstance(again, Replayed)
            assert charged == {"res-1": 9, "new-1": 9}
    assert await differences(store) == []
    await store.close()


async def test_facts_that_are_not_there_would_be_missed(fast_folder: Path) -> None:
    store = await open_store(fast_folder / LEDGER)
    await open_wallet(store, a_grant())
    await reserve(store)
    await store.settle(a_settle(9, owner=store.owner))
    made_up: list[Fact] = [Charged("res-1", 10), Debited("res-2", 1), Debited("res-1", 10)]
    assert await workload.lost(store, [*made_up, Charged("res-1", 9)]) == made_up
    await store.close()

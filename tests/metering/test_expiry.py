"""The sweep of expired grants: all of them, in bites, and again after a store that failed."""

import asyncio

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import NOW_US, a_grant, available, differences, open_wallet

from metergate.core.rows import TransferKind
from metergate.metering import expiry
from metergate.metering.expiry import ExpirySweep
from metergate.ports import TransferFilter

END_US = NOW_US + 1


async def expired(store: MemoryLedgerStore) -> int:
    rows = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows
    return sum(row.kind is TransferKind.EXPIRY for row in rows)


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> MemoryLedgerStore:
    monkeypatch.setattr(expiry, "GRANTS_AT_ONCE", 2)
    monkeypatch.setattr(expiry, "PAUSE_SECONDS", 0)
    opened = MemoryLedgerStore(clock=FakeClock(END_US))
    await open_wallet(opened, *(a_grant(f"g{number}", 10, expire_time_us=END_US) for number in range(5)))
    await opened.add_grant(a_grant("never", 10))
    return opened


async def test_a_look_deals_with_all_expired_grants_in_bites(store: MemoryLedgerStore) -> None:
    before = len(store.log)
    await ExpirySweep(store, store.clock, 60).look()
    assert await expired(store) == 5
    assert len(store.log) - before == 3
    assert await available(store, END_US) == 10
    assert await differences(store) == []


async def test_what_a_failing_store_does_not_take_is_done_the_next_time(
    store: MemoryLedgerStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.fail_next(1)
    await ExpirySweep(store, store.clock, 60).look()
    assert "expired grants are put off" in caplog.text
    assert await expired(store) == 0
    await ExpirySweep(store, store.clock, 60).look()
    assert await expired(store) == 5


async def test_a_defect_does_not_end_the_sweep(
    store: MemoryLedgerStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asyncio.Queue[None]()

    async def fail(_now_us: int, _limit: int) -> int:
        calls.put_nowait(None)
        raise ValueError("a defect")

    monkeypatch.setattr(store, "expire_grants", fail)
    running = asyncio.create_task(ExpirySweep(store, store.clock, 0).run())
    async with asyncio.timeout(10):
        for _ in range(3):
            await calls.get()
    running.cancel()
    await asyncio.wait([running])
    assert "could not be dealt with" in caplog.text

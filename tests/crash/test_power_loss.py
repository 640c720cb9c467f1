"""The power goes at any moment: what was acknowledged is there afterwards, and the books add up (L1, L3, L5)."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_capture, a_grant, a_settle, differences, open_wallet, reserve

from crash.power import Acknowledged, CannotHook, Event, Recording, after_power_cut, recording
from metergate.core.errors import StoreRefused
from metergate.ports import ChargeFilter
from metergate.stores.sqlite import SqliteLedgerStore, connection

REQUESTS = 12
CUTS = 40

# So small that the workload is checkpointed several times: what a checkpoint does to a database is cut through too.
CHECKPOINT_PAGES = 40


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.setattr(connection, "CHECKPOINT_PAGES", CHECKPOINT_PAGES)
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        with recording(folder) as recorded:
            yield recorded
    except CannotHook:
        pytest.skip("this Python's sqlite3 has SQLite built in: its files cannot be watched from outside")


async def work(folder: Path, disk: Recording, synchronous: str = "FULL") -> None:
    """Some requests, each reserved, captured twice and settled; every answer is noted when it came."""
    store = await SqliteLedgerStore.open(folder / "ledger.db", clock=FakeClock(NOW_US), owner_id="a", create=True)
    written = store._writer._connection
    assert written is not None
    written.execute(f"PRAGMA synchronous = {synchronous}")
    await open_wallet(store, a_grant(amount=100_000))
    disk.acknowledge("wallet")
    for number in range(REQUESTS):
        name = f"res-{number}"
        await reserve(store, name, owner=store.owner)
        for target in (40, 90):
            await store.capture(a_capture(target, name, owner=store.owner, delivered_microcredits=9))
            disk.acknowledge((name, target))
        if number % 4 != 3:  # the others are open when the power goes
            await store.settle(a_settle(70, name, owner=store.owner))
            disk.acknowledge((name, "settled"))
    await store.close()


async def lost(events: list[Event], folder: Path) -> list[object]:
    """What was acknowledged, and is not there any more, after the store was opened again."""
    acknowledged = [event.what for event in events if isinstance(event, Acknowledged)]
    try:
        store = await SqliteLedgerStore.open(folder / "ledger.db", clock=FakeClock(NOW_US), owner_id="b", create=False)
    except StoreRefused:
        return acknowledged
    try:
        assert await differences(store) == []
        page = await store.list_charges("alice", ChargeFilter(), cursor=None, size=100)
    finally:
        await store.close()
    charges = {charge.reservation_id: charge for charge in page.rows}
    missing: list[object] = []
    for what in acknowledged:
        name, amount = what if isinstance(what, tuple) else ("", what)
        charge = charges.get(name)
        if amount == "settled":
            is_there = charge is not None and charge.charge_id == f"charge-of-{name}"
        elif amount == "wallet":
            is_there = True  # or ``differences`` and every charge would know nothing of it
        else:
            # Settled, or by recovery at what was captured: at least this.
            is_there = charge is not None and charge.captured_microcredits >= amount
        if not is_there:
            missing.append(what)
    return missing


async def cut(events: list[Event], folder: Path, chance: random.Random) -> list[object]:
    """What is lost by a cut at some moment of the run, with none, half or all of the unsynced writes on the disk."""
    first = next(number for number, event in enumerate(events) if isinstance(event, Acknowledged))
    moment = chance.randrange(first + 1, len(events) + 1)
    left = folder / "left"
    left.mkdir()
    after_power_cut(events[:moment], left, chance, kept=chance.choice((0.0, 0.5, 1.0)))
    missing = await lost(events[:moment], left)
    shutil.rmtree(left)
    return missing


async def test_whenever_the_power_goes_nothing_that_was_acknowledged_is_lost(tmp_path: Path, disk: Recording) -> None:
    await work(tmp_path / "disk", disk)
    events, chance = list(disk.events), random.Random(1)
    assert disk.syncs() > 3 * REQUESTS, "every commit is synced"
    for _ in range(CUTS):
        assert await cut(events, tmp_path, chance) == []


async def test_the_same_cuts_lose_something_with_synchronous_normal(tmp_path: Path, disk: Recording) -> None:
    await work(tmp_path / "disk", disk, synchronous="NORMAL")
    events, chance = list(disk.events), random.Random(1)
    assert any([await cut(events, tmp_path, chance) for _ in range(CUTS)])

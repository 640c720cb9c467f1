"""The power goes at any moment: what was acknowledged is on the disk, whatever else arrived (L1, L3)."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from durability import workload
from durability.disk import Disk, Kind, watched
from durability.power_cut import Platter
from durability.workload import Fact, Work, check_books, lost
from metergate.core.errors import ResourceNotFound
from metergate.stores.sqlite import SqliteLedgerStore, connection

# Power cuts tried; ``make soak`` sets more. One takes about 15 ms.
CUTS = int(os.environ.get("SOAK_POWER_CUTS", "240"))
SEEDS = max(2, CUTS // 500)
ROUNDS = 12

LEDGER = "ledger.db"


def be_only_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open ledgers with ``synchronous = NORMAL``, which the store itself would refuse."""
    set_up = connection._set_up

    def set_up_normal(opened: sqlite3.Connection, path: Path) -> None:
        set_up(opened, path)
        opened.execute("PRAGMA synchronous = NORMAL")

    monkeypatch.setattr(connection, "_set_up", set_up_normal)


async def open_store(path: Path) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=workload.a_clock(), owner_id="gateway-1", create=True)


async def recorded_work(folder: Path, seed: int) -> tuple[dict[str, bytes], Disk]:
    """The files of a ledger, or of every other seed none, and all that was done to them afterwards."""
    before: dict[str, bytes] = {}
    if seed % 2 == 0:
        await (await open_store(folder / LEDGER)).close()
        before = {LEDGER: (folder / LEDGER).read_bytes()}
    with watched(folder) as disk:
        store = await open_store(folder / LEDGER)
        work = Work(seed, disk.note)
        await work.set_up(store)
        assert await work.rounds(store, ROUNDS) == 0
        await store.close()
    kinds = {(event.kind, event.name) for event in disk.events}
    assert {(Kind.WRITE, LEDGER), (Kind.SYNC, LEDGER), (Kind.SYNC, f"{LEDGER}-wal")} <= kinds, "no checkpoint was seen"
    return before, disk


async def lost_after(folder: Path, files: dict[str, bytes], facts: list[Fact]) -> list[Fact]:
    """Put these files into a folder, open the ledger as the next start does, and see what is missing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    store = await open_store(folder / LEDGER)
    try:
        missing = await lost(store, facts)
        if not missing:
            await check_books(store, facts)
        return missing
    except ResourceNotFound:
        assert not facts
        return []
    finally:
        await store.close()


async def power_cuts(folder: Path, seed: int, count: int) -> list[Fact]:
    """Cut the power this often in one run of work; return all that was acknowledged and is gone."""
    (folder / "work").mkdir()
    before, disk = await recorded_work(folder / "work", seed)
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(len(disk.events)), min(count, len(disk.events))))
    platter, facts, missing, played = Platter(before), list[Fact](), list[Fact](), 0
    for moment in moments:
        for event in disk.events[played : moment + 1]:
            platter.play(event)
            if event.note is not None:
                facts.append(event.note)
        played = moment + 1
        files = chance.choice((platter.nothing_else, platter.everything, lambda: platter.anything(chance)))()
        missing += await lost_after(folder / "after", files, facts)
    shutil.rmtree(folder / "work")
    return missing


async def test_nothing_acknowledged_is_lost_whenever_the_power_goes(fast_folder: Path) -> None:
    for seed in range(SEEDS):
        assert await power_cuts(fast_folder, seed, CUTS // SEEDS) == []


async def test_with_less_than_full_syncing_acknowledged_work_is_lost(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_only_normal(monkeypatch)
    missing = await power_cuts(fast_folder, 0, 60)
    assert len(missing) > 10, "the harness does not bite"

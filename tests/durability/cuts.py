"""Cuts the power of a ledger at moments of one run of work, and looks at what the next start finds."""

# ruff: noqa: ASYNC240 - small files, and nothing else runs

import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from request_filters import keeping_of, unknown_charges, until_whole

from durability import workload
from durability.disk import Disk, Kind, watched
from durability.power_cut import Platter
from durability.workload import Fact, Work, check_books, lost
from metergate.core.errors import ResourceNotFound
from metergate.stores.sqlite import SqliteLedgerStore

ROUNDS = 12

LEDGER = "ledger.db"


async def open_store(path: Path) -> SqliteLedgerStore:
    """As a gateway opens it; what was open is settled."""
    return await SqliteLedgerStore.open(
        path, clock=workload.a_clock(), owner_id="gateway-1", create=True, request_filter_mebibytes=1
    )


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
        await until_whole(store)
        for rounds in (ROUNDS // 2, ROUNDS - ROUNDS // 2):
            assert await work.rounds(store, rounds) == 0
            await keeping_of(store).store()
        await store.close()
    kinds = {(event.kind, event.name) for event in disk.events}
    assert {(Kind.WRITE, LEDGER), (Kind.SYNC, LEDGER), (Kind.SYNC, f"{LEDGER}-wal")} <= kinds, "no checkpoint was seen"
    return before, disk


async def power_cuts(folder: Path, seed: int, count: int) -> AsyncIterator[list[Fact]]:
    """Cut the power this often in one run of work; after each, what was acknowledged and is gone."""
    (folder / "work").mkdir()
    before, disk = await recorded_work(folder / "work", seed)
    shutil.rmtree(folder / "work")
    chance = random.Random(seed)
    platter, facts, played = Platter(before), list[Fact](), 0
    for moment in sorted(chance.choices(range(len(disk.events)), k=count)):
        for event in disk.events[played : moment + 1]:
            platter.play(event)
            if event.note is not None:
                facts.append(event.note)
        played = moment + 1
        files = chance.choice((platter.nothing_else, platter.everything, lambda: platter.anything(chance)))()
        yield await lost_after(folder / "after", files, facts)


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
            await until_whole(store)
            assert unknown_charges(folder / LEDGER, store) == []
        return missing
    except ResourceNotFound:
        return list(facts)  # not even the wallet is there
    finally:
        await store.close()

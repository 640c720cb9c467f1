"""Measures the ledger's store: ``python scripts/bench_store.py [hops|captures]``.

``hops``: batches as the writer commits them, one hop to a thread a batch (sqlite3) against one a statement (aiosqlite).
``captures``: durable captures a second through SqliteLedgerStore, from many streams at once. Files are made in the
current directory, because a memory file system would not show what a commit costs.
"""

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import aiosqlite

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes import FakeClock
from ledger_rows import (
    CARD,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_reserve,
    a_wallet,
)

from metergate.stores.sqlite import SqliteLedgerStore

ROUNDS = 5
SECONDS_A_ROUND = 0.4
STREAMS = 512
CAPTURES_A_STREAM = 60
UPDATE = "UPDATE rows SET value = value + 1 WHERE id = ?"
SELECT = "SELECT rows.value FROM json_each(?) AS wanted CROSS JOIN rows ON rows.id = wanted.value"


def _prepare(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.executemany("INSERT INTO rows VALUES (?, 0)", [(number,) for number in range(STREAMS)])
    connection.close()


def _statements(selects: int, rows: int) -> list[tuple[str, list[tuple[object, ...]]]]:
    """A transaction: some set-based reads, then one set-based write."""
    ids = "[" + ",".join(map(str, range(rows))) + "]"
    reads: list[tuple[str, list[tuple[object, ...]]]] = [(SELECT, [(ids,)])] * selects
    return [*reads, (UPDATE, [(number,) for number in range(rows)])]


async def _rate(batch: Callable[[], Awaitable[None]]) -> float:
    """Batches a second, one after the other."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS_A_ROUND:
        await batch()
        count += 1
    return count / (time.perf_counter() - start)


async def _one_hop(path: Path, selects: int, rows: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    loop = asyncio.get_running_loop()

    def commit() -> None:
        connection.execute("BEGIN IMMEDIATE")
        for sql, values in _statements(selects, rows):
            if sql is SELECT:
                connection.execute(sql, values[0]).fetchall()
            else:
                connection.executemany(sql, values)
        connection.execute("COMMIT")

    with ThreadPoolExecutor(1) as thread:

        async def batch() -> None:
            await loop.run_in_executor(thread, commit)

        rate = await _rate(batch)
    connection.close()
    return rate


async def _a_hop_a_statement(path: Path, selects: int, rows: int) -> float:
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.execute("PRAGMA synchronous = FULL")

        async def batch() -> None:
            await connection.execute("BEGIN IMMEDIATE")
            for sql, values in _statements(selects, rows):
                if sql is SELECT:
                    await connection.execute_fetchall(sql, values[0])
                else:
                    await connection.executemany(sql, values)
            await connection.execute("COMMIT")

        return await _rate(batch)


async def _hops(folder: Path) -> None:
    print("reads  rows  one hop/s  a hop a statement/s  ratio")
    for selects, rows in ((0, 1), (6, 1), (0, 64), (6, 64), (0, STREAMS)):
        path = folder / f"{selects}-{rows}.db"
        _prepare(path)
        # In turns, because a shared disk is faster at one moment than at another.
        rounds = [
            (await _one_hop(path, selects, rows), await _a_hop_a_statement(path, selects, rows)) for _ in range(ROUNDS)
        ]
        one, many = (median(rates) for rates in zip(*rounds, strict=True))
        print(f"{selects:5}  {rows:4}  {one:9.0f}  {many:19.0f}  {one / many:5.2f}")


async def _captures(folder: Path) -> None:
    clock = FakeClock(NOW_US)
    store = await SqliteLedgerStore.open(folder / "ledger.db", clock=clock, owner_id="bench", create=True)
    await store.add_rate_cards([CARD])
    names = [f"s{number}" for number in range(STREAMS)]
    await asyncio.gather(*(store.add_subscriber(a_wallet(name)) for name in names))
    await asyncio.gather(*(store.add_authorization(a_consent(name, name)) for name in names))
    await asyncio.gather(*(store.add_grant(a_grant(name, 10**6, name)) for name in names))
    start = time.perf_counter()
    reserves = [
        a_reserve(name, subscriber_id=name, authorization_id=name, owner=store.owner, wanted_microcredits=10_000)
        for name in names
    ]
    await asyncio.gather(*map(store.reserve, reserves))
    print(f"{STREAMS / (time.perf_counter() - start):,.0f} reserves/s")
    operations = {
        name: [
            a_capture(target, name, subscriber_id=name, owner=store.owner)
            for target in range(10, 10 + CAPTURES_A_STREAM)
        ]
        for name in names
    }

    async def stream(name: str) -> None:
        for operation in operations[name]:
            await store.capture(operation)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(stream, names))
    count = STREAMS * CAPTURES_A_STREAM
    cpu_us = (time.process_time() - cpu) / count * 1e6
    print(f"{count / (time.perf_counter() - start):,.0f} captures/s, {cpu_us:.1f} us CPU each, {STREAMS} streams")
    await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=".") as folder:
        asyncio.run((_captures if sys.argv[1:] == ["captures"] else _hops)(Path(folder)))

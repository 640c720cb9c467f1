"""Batches as the writer commits them: one hop to a thread a batch (sqlite3) against one a statement (aiosqlite).

What docs/decisions/0002-one-hop-a-batch.md decided by.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import aiosqlite

from bench.costs import Progress
from bench.results import Hops

ROWS = 512
BATCHES = ((0, 1), (6, 1), (0, 64), (6, 64), (0, ROWS))  # set-based reads, rows written
UPDATE = "UPDATE rows SET value = value + 1 WHERE id = ?"
SELECT = "SELECT rows.value FROM json_each(?) AS wanted CROSS JOIN rows ON rows.id = wanted.value"


async def measure_hops(folder: Path, rounds: int, seconds_a_round: float, progress: Progress) -> list[Hops]:
    """Transactions a second, medians of rounds in turns: a shared disk is faster at one moment than at another."""
    measured = []
    for reads, rows in BATCHES:
        progress(f"hops, {reads} reads and {rows} rows a batch")
        path = folder / f"hops-{reads}-{rows}.db"
        _prepare(path)
        rates = [
            (await _one_hop(path, reads, rows, seconds_a_round), await _many_hops(path, reads, rows, seconds_a_round))
            for _ in range(rounds)
        ]
        one, many = (median(of_one) for of_one in zip(*rates, strict=True))
        measured.append(Hops(reads=reads, rows=rows, one_hop=one, a_hop_a_statement=many))
    return measured


def _prepare(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.executemany("INSERT INTO rows VALUES (?, 0)", [(number,) for number in range(ROWS)])
    connection.close()


def _statements(reads: int, rows: int) -> list[tuple[str, list[tuple[object, ...]]]]:
    """A transaction: some set-based reads, then one set-based write."""
    ids = "[" + ",".join(map(str, range(rows))) + "]"
    selects: list[tuple[str, list[tuple[object, ...]]]] = [(SELECT, [(ids,)])] * reads
    return [*selects, (UPDATE, [(number,) for number in range(rows)])]


async def _rate(batch: Callable[[], Awaitable[None]], seconds: float) -> float:
    """Batches a second, one after the other."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        await batch()
        count += 1
    return count / (time.perf_counter() - start)


async def _one_hop(path: Path, reads: int, rows: int, seconds: float) -> float:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    loop = asyncio.get_running_loop()

    def commit() -> None:
        connection.execute("BEGIN IMMEDIATE")
        for sql, values in _statements(reads, rows):
            if sql is SELECT:
                connection.execute(sql, values[0]).fetchall()
            else:
                connection.executemany(sql, values)
        connection.execute("COMMIT")

    with ThreadPoolExecutor(1) as thread:

        async def batch() -> None:
            await loop.run_in_executor(thread, commit)

        rate = await _rate(batch, seconds)
    connection.close()
    return rate


async def _many_hops(path: Path, reads: int, rows: int, seconds: float) -> float:
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.execute("PRAGMA synchronous = FULL")

        async def batch() -> None:
            await connection.execute("BEGIN IMMEDIATE")
            for sql, values in _statements(reads, rows):
                if sql is SELECT:
                    await connection.execute_fetchall(sql, values[0])
                else:
                    await connection.executemany(sql, values)
            await connection.execute("COMMIT")

        return await _rate(batch, seconds)

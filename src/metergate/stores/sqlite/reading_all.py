"""Reads whole tables in one consistent view, page by page, for exports."""

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from metergate.core.rows import Charge, Transfer
from metergate.ports import Times
from metergate.stores.sqlite import codec

Row = TypeVar("Row")
Run = Callable[[Callable[[], Any]], Awaitable[Any]]

# Rows in memory at once: some megabytes.
PAGE_ROWS = 5_000

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound

# In the order that they are stored in, whatever their times: a table is read once, from its beginning to its end.
ALL_CHARGES = f"""
    SELECT charge_number, {codec.CHARGE} FROM charges
    WHERE charge_number > ? AND settle_time_us >= ? AND settle_time_us < ? ORDER BY charge_number LIMIT {PAGE_ROWS}
"""
ALL_TRANSFERS = f"""
    SELECT {codec.TRANSFER} FROM transfers
    WHERE (subscriber_id, sequence) > (?, ?) AND create_time_us >= ? AND create_time_us < ?
    ORDER BY subscriber_id, sequence LIMIT {PAGE_ROWS}
"""


async def read_charges(
    connection: sqlite3.Connection, run: Run, times: Times
) -> AsyncGenerator[Sequence[Charge], None]:
    """In order of settling."""
    async for page in _pages(connection, run, ALL_CHARGES, (0,), times):
        yield [codec.charge(columns[1:]) for columns in page]


async def read_transfers(
    connection: sqlite3.Connection, run: Run, times: Times
) -> AsyncGenerator[Sequence[Transfer], None]:
    """By subscriber, in order of sequence."""
    async for page in _pages(connection, run, ALL_TRANSFERS, ("", 0), times):
        yield [codec.transfer(columns) for columns in page]


async def _pages(
    connection: sqlite3.Connection, run: Run, sql: str, position: codec.Columns, times: Times
) -> AsyncGenerator[list[codec.Columns], None]:
    await run(lambda: connection.execute("BEGIN"))
    key_size = len(position)
    while True:
        values = (*position, times.first_us, times.end_us)
        page: list[codec.Columns] = await run(partial(_all, connection, sql, values))
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        position = page[-1][:key_size]


def _all(connection: sqlite3.Connection, sql: str, values: codec.Columns) -> list[codec.Columns]:
    return connection.execute(sql, values).fetchall()

"""Looking into the filter of charges' requests that an open SQLite store has."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from metergate.core.books import RequestKey
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.stores.sqlite.filter_keeping import FilterKeeping, Write
from metergate.stores.sqlite.request_filter import RequestFilter

# Nobody asks for what was renamed when its subscriber was forgotten.
CHARGED = """
    SELECT subscriber_id, authorization_id, request_id FROM charges
    WHERE subscriber_id NOT IN (SELECT subscriber_id FROM erasures)
"""


async def until_whole(store: SqliteLedgerStore) -> None:
    """Wait until the store's own task has read every charge."""
    async with asyncio.timeout(60):
        while not store.has_whole_request_filter:  # noqa: ASYNC110 - the store itself waits for nobody
            await asyncio.sleep(0.001)


def keeping_of(store: SqliteLedgerStore, *, write: Write | None = None) -> FilterKeeping:
    """As the store's own, to be told when to store it."""
    return FilterKeeping(
        store._path,
        filter_of(store),
        store.content_key,
        read=lambda function: store._read(lambda query: function(query.connection)),
        write=write or (lambda set_up: store._commits.submit(set_up, is_new_work=False)),
    )


def filter_of(store: SqliteLedgerStore) -> RequestFilter:
    found = store._writer.request_filter
    assert found is not None
    return found


def unknown_charges(path: Path, store: SqliteLedgerStore) -> list[RequestKey]:
    """Requests that were charged, and that a whole filter denies: there must be none."""
    with closing(sqlite3.connect(path)) as raw:
        return unknown(raw, filter_of(store))


def unknown(raw: sqlite3.Connection, made: RequestFilter) -> list[RequestKey]:
    """Likewise, of a connection to the ledger."""
    assert made.is_whole
    charged: list[RequestKey] = raw.execute(CHARGED).fetchall()
    known = set(made.perhaps_charged(charged))
    return [request for request in charged if request not in known]

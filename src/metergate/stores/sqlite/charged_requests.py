"""Which requests were charged before, read beside the writer's own reading.

Of each admission the place of its request among all charges is read, on a page of its own anywhere in a large index:
that takes as long as all that is read of its payer. So both are read at once, over two connections. While a batch is
loaded nothing is committed, for the file has one writer, and what it committed before, every connection sees.
"""

import sqlite3
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from metergate.core.books import RequestKey
from metergate.stores.sqlite import codec, derived
from metergate.stores.sqlite.connection import open_for_reading

CHARGES_BY_REQUEST = f"""
    SELECT {derived.qualified("charges", codec.CHARGE)} FROM json_each(?) AS wanted CROSS JOIN charges
    WHERE charges.subscriber_id = wanted.value ->> 0
        AND charges.authorization_id = wanted.value ->> 1
        AND charges.request_id = wanted.value ->> 2
"""  # noqa: S608 - constants only

# For fewer, waking another thread takes longer than reading them.
REQUESTS_MIN = 32

# The inner pages of the index of a hundred million charges.
CACHE_MEBIBYTES = 64


class ChargedRequests:
    """A read-only connection beside the writer's, and a thread of its own. One thread at a time calls it."""

    def __init__(self, path: Path, writing: sqlite3.Connection) -> None:
        """StoreRefused as ``open_for_reading``."""
        self._writing = writing
        self._beside = open_for_reading(path)
        self._beside.execute(f"PRAGMA cache_size = -{CACHE_MEBIBYTES * 1_024}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-requests")

    @contextmanager
    def reading(self, requests: Collection[RequestKey]) -> Iterator[list[codec.Columns]]:
        """A list that has the charges of these requests when the block is left; sqlite3.Error if storage fails."""
        found: list[codec.Columns] = []
        wanted = codec.to_json(sorted(requests))  # as they are stored: neighbours are found on the same pages
        if len(requests) < REQUESTS_MIN:
            yield found
            if requests:
                found += _charges(self._writing, wanted)
            return
        reading = self._thread.submit(_charges, self._beside, wanted)
        try:
            yield found
        finally:
            found += reading.result()

    def close(self) -> None:
        """End the thread and the connection, whatever state they are in."""
        self._thread.shutdown()
        self._beside.close()


def _charges(connection: sqlite3.Connection, wanted: str) -> list[codec.Columns]:
    return connection.execute(CHARGES_BY_REQUEST, (wanted,)).fetchall()

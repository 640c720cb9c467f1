"""Which requests were charged before, read beside the writer's own reading.

Of each admission the place of its request among all charges is read, on a page of its own anywhere in a large index:
that takes as long as all that is read of its payer, and longer where the system does not have the page in memory. So
they are read at once, over several connections. While a batch is loaded nothing is committed, for the file has one
writer, and what it committed before, every connection sees.
"""

import sqlite3
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
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

# What a disk reads at once takes little longer than one page.
READERS = 4


class ChargedRequests:
    """Read-only connections beside the writer's, each with a thread. One thread at a time calls it.

    SQLite forgets a connection's pages whenever another one has committed: a larger cache is of no use here.
    """

    def __init__(self, path: Path, writing: sqlite3.Connection) -> None:
        """StoreRefused as ``open_for_reading``."""
        self._writing = writing
        with ExitStack() as opened:
            self._beside = [opened.enter_context(closing(open_for_reading(path))) for _ in range(READERS)]
            self._closing = opened.pop_all()
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-requests")

    @contextmanager
    def reading(self, requests: Collection[RequestKey]) -> Iterator[list[codec.Columns]]:
        """A list that has the charges of these requests when the block is left; sqlite3.Error if storage fails."""
        found: list[codec.Columns] = []
        wanted = sorted(requests)  # as they are stored: neighbours are found on the same pages
        if len(wanted) < REQUESTS_MIN:
            yield found
            if wanted:
                found += _charges(self._writing, wanted)
            return
        size = -(-len(wanted) // READERS)
        parts = [wanted[first : first + size] for first in range(0, len(wanted), size)]
        pairs = zip(self._beside, parts, strict=False)  # a few requests may be fewer parts
        reading = [self._threads.submit(_charges, connection, part) for connection, part in pairs]
        try:
            yield found
        finally:
            wait(reading)
            for part in reading:
                found += part.result()

    def close(self) -> None:
        """End the threads and the connections, whatever state they are in."""
        self._threads.shutdown()
        self._closing.close()


def _charges(connection: sqlite3.Connection, requests: list[RequestKey]) -> list[codec.Columns]:
    return connection.execute(CHARGES_BY_REQUEST, (codec.to_json(requests),)).fetchall()

"""Writing a ledger's file anew, so that nothing is left in it but its rows.

``secure_delete`` overwrites what is deleted. It does not overwrite what SQLite leaves in the unused middle of a page
when it moves rows to another one: copies of rows that were deleted since were found there, of one subscriber in 60.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from metergate.core.errors import StoreUnavailable
from metergate.stores.sqlite.connection import FileLock, check_path, open_for_writing

logger = logging.getLogger(__name__)

# A file up to this size is written anew at once, between two batches: captures wait for some 0.15 s. A larger one is
# left to `metergate ledger compact`.
COMPACTED_AT_ONCE_BYTES = 32 * 1024 * 1024

# Erasures that are done, and after which the file was not written anew, or its WAL not emptied.
COPIES_ARE_LEFT = """
    SELECT 1 FROM erasures INDEXED BY erasures_with_copies
    WHERE leaves_copies = 1 AND erasing_subscriber_id IS NULL LIMIT 1
"""
COPIES_ARE_GONE = """
    UPDATE erasures INDEXED BY erasures_with_copies SET leaves_copies = 0
    WHERE leaves_copies = 1 AND erasing_subscriber_id IS NULL
"""

# There is no room for a second copy, or something reads: nothing has changed, and nothing is wrong with the connection.
_HARMLESS = {"SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED"}


def is_small(connection: sqlite3.Connection) -> bool:
    """Whether the file may be written anew while a gateway serves."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return bool(pages * page_bytes <= COMPACTED_AT_ONCE_BYTES)


def compact_if_small(connection: sqlite3.Connection) -> bool:
    """Write a small file anew, outside a transaction, and say whether that was done.

    sqlite3.Error if the connection cannot be used any more.
    """
    if not is_small(connection):
        return False
    try:
        connection.execute("VACUUM")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorname not in _HARMLESS:
            raise
        logger.warning("the ledger's file could not be written anew, run `metergate ledger compact`: %s", exc)
        return False
    return True


def compact(path: Path) -> None:
    """Write a ledger's file anew. StoreRefused while a gateway serves it; StoreUnavailable if storage fails."""
    check_path(path, create=False)
    lock = FileLock(path)
    try:
        with closing(open_for_writing(path, create=False)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute(COPIES_ARE_GONE)
    except sqlite3.Error as exc:
        logger.error("the ledger %s could not be written anew: %s", path, exc)
        raise StoreUnavailable from exc
    finally:
        lock.release()

"""Reads the wallets into the writer's cache before a gateway serves.

An admission reads a page of its wallet, its authorization and its grants each, anywhere in the file. Read one after the
other as requests come, each is a wait; read once in the order that they are stored in, a million wallets' take less
than a second. What is read here only lies ready: nothing depends on it.
"""

import logging
import sqlite3
import time

logger = logging.getLogger(__name__)

# A disk that takes longer is read as requests come: a gateway that was restarted should serve.
SECONDS_MAX = 5.0

# Of the cache; the rest is for what requests write.
SHARE = 0.75

# Of a wallet with one authorization and one grant, in all their trees, with what their pages have free.
PAYER_BYTES = 170

# How often the clock is looked at: every so many steps of SQLite's machine, some 100 us.
STEPS_BETWEEN_LOOKS = 10_000

# As an admission goes through them. No sums: a million grants' would be beyond 64 bits.
TREES = (
    "SELECT max(sequence) FROM (SELECT sequence FROM wallets LIMIT ?)",
    "SELECT max(charged_microcredits) FROM (SELECT charged_microcredits FROM authorizations LIMIT ?)",
    """
    SELECT max(unspent_microcredits) FROM (
        SELECT unspent_microcredits FROM grants INDEXED BY grants_with_credit WHERE is_spent = 0 LIMIT ?
    )
    """,
)


def warm(connection: sqlite3.Connection, cache_mebibytes: int) -> None:
    """Read as many payers as the cache has room for; sqlite3.Error if storage fails."""
    rows_max = int(cache_mebibytes * 1_048_576 * SHARE) // PAYER_BYTES
    began = time.monotonic()
    connection.set_progress_handler(lambda: time.monotonic() - began > SECONDS_MAX, STEPS_BETWEEN_LOOKS)
    try:
        for select in TREES:
            connection.execute(select, (rows_max,)).fetchone()
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorname != "SQLITE_INTERRUPT":
            raise
        logger.info("not all wallets were read beforehand within %d s: their first requests read them", SECONDS_MAX)
    finally:
        connection.set_progress_handler(None, 0)

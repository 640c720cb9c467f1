"""Says now and then, in the log, how far work is that takes long: an operator must not take it for stuck."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

TOLD_EVERY_SECONDS = 10.0

# How often the clock is looked at, in steps of SQLite's machine: some milliseconds.
STEPS_BETWEEN_LOOKS = 100_000


@contextmanager
def telling(connection: sqlite3.Connection, path: Path, what: str) -> Iterator[None]:
    """Of the statements in the block, log how long they take so far and how much they have written.

    How much there is to write is not known before: no more than the ledger has, and a version rewrites a table or two.
    """
    began = told = time.monotonic()

    def look() -> int:
        nonlocal told
        now = time.monotonic()
        if now - told >= TOLD_EVERY_SECONDS:
            told = now
            megabytes = _size_of(f"{os.path.realpath(path)}-wal") / 1e6
            logger.info("%s: %.0f s so far, %.0f MB written", what, now - began, megabytes)
        return 0  # go on

    connection.set_progress_handler(look, STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

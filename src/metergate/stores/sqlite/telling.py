"""Says now and then, in the log, how far work is that takes long: an operator must not take it for stuck."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

TOLD_EVERY_SECONDS = 10.0


@contextmanager
def telling(path: Path, what: str) -> Iterator[None]:
    """While the block runs, log how long it takes so far and how large the WAL is.

    How much there is to write is not known before. From another thread: sorting an index and dropping a table are
    single steps of SQLite, of minutes in a large file, in which it calls nobody.
    """
    began, is_over = time.monotonic(), threading.Event()
    wal = f"{os.path.realpath(path)}-wal"

    def tell() -> None:
        while not is_over.wait(TOLD_EVERY_SECONDS):
            logger.info("%s: %.0f s so far, its WAL has %.0f MB", what, time.monotonic() - began, _size_of(wal) / 1e6)

    thread = threading.Thread(target=tell, name="ledger-telling")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

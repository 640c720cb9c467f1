"""Copies of a ledger, and putting one in its place. Plain blocking code."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from metergate.core.errors import BackupRefused, FileRefused, StoreRefused
from metergate.stores.sqlite.connection import (
    FileLock,
    check_path,
    open_for_reading,
    open_for_writing,
    open_of_any_version,
)
from metergate.stores.whole_files import WholeFile

# Pages between two steps of the progress: 16 MB.
COPIED_PAGES = 4_096

Progress = Callable[[int, int], None]  # pages that are copied, and all


def copy_ledger(source: Path, copy: Path, progress: Progress) -> None:
    """Copy a ledger as it is at one instant into an empty file, also while a gateway writes it.

    StoreRefused if it is none; FileRefused if the copy cannot be written.
    """
    with closing(open_for_reading(source)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM meta").fetchone()  # one view of all, whatever is committed meanwhile
        _copy(connection, copy, progress)


def _copy(connection: sqlite3.Connection, copy: Path, progress: Progress) -> None:
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as target:
            connection.backup(target, pages=COPIED_PAGES, progress=lambda _, left, pages: progress(pages - left, pages))
            target.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    except sqlite3.Error as exc:
        raise FileRefused(path=str(copy), problem=str(exc)) from exc


class Restoration:
    """A backup on its way to its place, under the store's lock; until ``put_in_place`` nothing has changed.

    StoreRefused while a gateway or another command writes the store.
    """

    def __init__(self, backup: Path, store: Path) -> None:
        check_path(store, create=True)
        self._backup = backup
        self._store = Path(os.path.realpath(store))
        self._lock = FileLock(store)
        self._file = WholeFile(self._store, may_replace=True)

    def __enter__(self) -> Self:
        try:
            self._file.__enter__()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.__exit__(kind, error, trace)
        finally:
            self._lock.release()

    @property
    def copy(self) -> Path:
        """The copy that will be the store."""
        return self._file.partial

    def prepare(self, progress: Progress) -> None:
        """Copy the backup and bring the copy up to this version.

        BackupRefused if it is damaged, foreign, of a newer version, or of another ledger than the one in its place.
        """
        try:
            with closing(open_of_any_version(self._backup)) as connection:
                (finding,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
                if finding != "ok":
                    raise BackupRefused(path=str(self._backup), problem=f"it is damaged: {finding}")
                _copy(connection, self.copy, progress)
            with closing(open_for_writing(self.copy, create=False)) as connection:
                connection.execute("PRAGMA journal_mode = DELETE")
        except StoreRefused as exc:
            raise BackupRefused(path=str(self._backup), problem=exc.problem) from exc
        except sqlite3.Error as exc:
            raise BackupRefused(path=str(self._backup), problem=f"it is damaged: {exc}") from exc
        if _content_key(self._store) not in (None, _content_key(self.copy)):
            problem = "it is of another ledger than the one in its place; move that one away first"
            raise BackupRefused(path=str(self._backup), problem=problem)

    def put_in_place(self) -> Path | None:
        """Put the copy where the store is; where the old one is now, or None if there was none."""
        kept = self._move_old_away()
        self._file.keep()
        return kept

    def _move_old_away(self) -> Path | None:
        """The old store with all that it had acknowledged, under another name: nothing of it may lie beside the new."""
        kept = Path(f"{self._store}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        was_there = self._store.exists()
        if was_there:
            _fold(self._store)
            os.link(self._store, kept)  # the store's own name stays until the copy takes it
        wal = Path(f"{self._store}-wal")
        if wal.exists():  # it could not be folded, or its database was gone
            os.replace(wal, f"{kept}-wal")
        Path(f"{self._store}-shm").unlink(missing_ok=True)
        return kept if was_there else None


def _fold(store: Path) -> None:
    """Put what the WAL holds into the database; what cannot be read stays as it is."""
    try:
        with closing(sqlite3.connect(store, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error:
        return


def _content_key(path: Path) -> bytes | None:
    """The secret that tells one ledger from another; None if there is no ledger that can be read."""
    try:
        with closing(open_of_any_version(path)) as connection:
            row = connection.execute("SELECT content_key FROM meta").fetchone()
    except (StoreRefused, sqlite3.Error):
        return None
    return None if row is None else bytes(row[0])

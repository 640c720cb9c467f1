"""Opening the ledger's file: only our own, only in a version we know, only by one writing process at a time.

A ledger has one writing connection, which also makes every checkpoint; all others are read-only. So the corruption that
SQLite before 3.51.3 risks when two connections write and checkpoint one WAL at once cannot happen, and no version is
refused for it.
"""

import fcntl
import logging
import os
import sqlite3
import stat
from importlib import resources
from pathlib import Path
from typing import Self
from urllib.parse import quote

from metergate.core.errors import StoreRefused
from metergate.stores.sqlite.telling import telling

logger = logging.getLogger(__name__)

# "MGTR": marks the file as Metergate's, for us and for file(1).
APPLICATION_ID = 0x4D475452

# STRICT tables came with 3.37, the ->> operator with 3.38.
SQLITE_VERSION_MIN = (3, 38, 0)

# A backup or a shell may hold the file for a moment; what is blocked longer is refused, and its streams end.
BUSY_TIMEOUT_S = 2.0

# After a checkpoint the WAL is cut back to this: a long audit lets it grow, and the space should come back.
WAL_BYTES_AFTER_CHECKPOINT = 64 * 1024 * 1024

# A checkpoint copies every page that changed since the last one, once, and waits for the disk twice. Every 32 MB, and
# not 4 MB as by itself, copies a busy page an eighth as often; reading a WAL of that size after a crash took 0.02 s.
CHECKPOINT_PAGES = 8_192

# What a command needs, which changes little or reads a file from its beginning to its end.
COMMAND_CACHE_MEBIBYTES = 64


class FileLock:
    """Keeps a second process from writing the same ledger; the operating system frees it when the process dies."""

    def __init__(self, path: Path) -> None:
        lock_path = f"{os.path.realpath(path)}.lock"
        try:
            self._descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StoreRefused(path=str(path), problem=f"its lock file {lock_path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._descriptor)
            raise StoreRefused(
                path=str(path), problem="a gateway or another command is writing it; stop it first"
            ) from exc

    def release(self) -> None:
        """Free the lock. The lock file stays: removing it would let two processes lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


Inode = tuple[int, int]  # device and number: which file it is, whatever it is called


class FileIdentity:
    """Which files a connection has open, to notice that one was deleted or replaced under it.

    SQLite goes on writing to a deleted file without an error, and everything written there is lost. A database that was
    put in the place of another, beside whose WAL it now lies, is destroyed by the first connection that is opened. So
    the database and the lock must stay what they were when the ledger was first opened; a lost WAL is made again.
    """

    def __init__(self, path: Path) -> None:
        """StoreRefused if one of the files cannot be seen."""
        self._path = path  # followed anew each time: a symbolic link may be made to lead elsewhere
        real = os.path.realpath(path)
        self._lock_path, self._wal_path = f"{real}.lock", f"{real}-wal"
        try:
            self._lasting = self._look_at_lasting()
            self._wal = inode_of(self._wal_path)
        except OSError as exc:
            raise StoreRefused(path=str(path), problem=f"{exc.filename}: {exc.strerror}") from exc

    def _look_at_lasting(self) -> tuple[Inode, Inode]:
        return inode_of(self._path), inode_of(self._lock_path)

    def is_intact(self) -> bool:
        """Whether the names still lead to the same files."""
        try:
            return self.is_ledger_in_place() and inode_of(self._wal_path) == self._wal
        except OSError:
            return False

    def is_ledger_in_place(self) -> bool:
        """Whether the database and the lock, at least, are still the same files."""
        try:
            return self._look_at_lasting() == self._lasting
        except OSError:
            return False


def inode_of(path: Path | str) -> Inode:
    """Which file a name leads to; OSError if to none."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


class Refusal:
    """Turns what the driver raises inside the block into StoreRefused."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> None:
        if isinstance(exc, sqlite3.Error):
            raise StoreRefused(path=str(self._path), problem=_PROBLEMS.get(str(exc), str(exc))) from exc


_PROBLEMS = {
    "file is not a database": "it is not a database",
    "attempt to write a readonly database": "it is read-only",
    "database is locked": "another program holds it",
}


def open_for_writing(path: Path, *, create: bool, cache_mebibytes: int = COMMAND_CACHE_MEBIBYTES) -> sqlite3.Connection:
    """The writing connection, migrated to the newest schema; with ``create``, of a new file if there is none.

    The caller holds the FileLock. StoreRefused if the file is missing, foreign, newer, read-only or no database.
    """
    check_path(path, create=create)
    if create:
        _create(path)
    with Refusal(path):
        connection = _connect(path, "rw")
        try:
            _require_ours(connection, path, allow_empty=create)
            _set_up(connection, path)
            connection.execute(f"PRAGMA cache_size = -{cache_mebibytes * 1_024}")
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A read-only connection; a gateway may be writing meanwhile.

    StoreRefused if the file is missing, foreign, of another version, or no database.
    """
    connection = open_of_any_version(path)
    with Refusal(path):
        try:
            if _pragma(connection, "user_version") < len(migrations()):
                raise StoreRefused(path=str(path), problem="it is of an older version; serve it once to migrate it")
        except BaseException:
            connection.close()
            raise
        return connection


def open_of_any_version(path: Path) -> sqlite3.Connection:
    """A read-only connection to a ledger that may be of an older version. StoreRefused as ``open_for_reading``."""
    check_path(path, create=False)
    with Refusal(path):
        connection = _connect(path, "ro")
        try:
            connection.execute("PRAGMA query_only = ON")
            _require_ours(connection, path, allow_empty=False)
        except BaseException:
            connection.close()
            raise
        return connection


def check_path(path: Path, *, create: bool) -> None:
    """StoreRefused unless there is a file, or with ``create`` at least a directory for it, and SQLite is new enough."""
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        problem = f"SQLite {sqlite3.sqlite_version} is too old; 3.38 or newer is needed"
        raise StoreRefused(path=str(path), problem=problem)
    problem = _problem_with(path, create)
    if problem:
        raise StoreRefused(path=str(path), problem=problem)


def _problem_with(path: Path, create: bool) -> str:
    """What keeps a path from being a ledger's; "" if nothing does."""
    try:
        if not stat.S_ISDIR(os.stat(path.parent).st_mode):
            return f"{path.parent} is not a directory"
    except FileNotFoundError:
        return f"there is no directory {path.parent}"
    except (OSError, ValueError) as exc:
        return str(getattr(exc, "strerror", exc))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "" if create else "there is no such file"
    except (OSError, ValueError) as exc:
        return str(getattr(exc, "strerror", exc))
    if not stat.S_ISREG(status.st_mode):
        return "it is not a file"
    # SQLite names the WAL, and we the lock, after the name: by two names, two gateways would write one database.
    return "it has other names (hard links); a ledger must have one" if status.st_nlink > 1 else ""


def migrations() -> list[str]:
    """SQL of each schema version, in order: the file 0001_... makes version 1."""
    folder = resources.files(__package__) / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [file.read_text(encoding="utf-8") for file in files]


def _create(path: Path) -> None:
    """Make an empty file that only its owner can read; an existing one is left as it is."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise StoreRefused(path=str(path), problem=exc.strerror or str(exc)) from exc


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are written out. One thread at a time uses it."""
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _require_ours(connection: sqlite3.Connection, path: Path, *, allow_empty: bool) -> None:
    application_id, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    is_empty = application_id == 0 and version == 0 and tables == 0
    if is_empty and allow_empty:
        return
    if application_id != APPLICATION_ID:
        problem = "it is empty" if is_empty else "it belongs to another application"
        raise StoreRefused(path=str(path), problem=problem)
    if version > len(migrations()):
        problem = f"its version {version} is newer than this program's {len(migrations())}"
        raise StoreRefused(path=str(path), problem=problem)


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    """Durability first: a commit that was acknowledged survives a power cut, or the store is refused."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what was erased or pruned is not left in free space
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_AFTER_CHECKPOINT}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    full = 2
    if mode != "wal" or _pragma(connection, "synchronous") != full:
        raise StoreRefused(path=str(path), problem="its file system cannot do WAL with synchronous=FULL")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply what is missing, each version in a transaction of its own; StoreRefused, unchanged, if one cannot be."""
    scripts = migrations()
    missing = range(_pragma(connection, "user_version") + 1, len(scripts) + 1)
    if not missing:
        return
    connection.execute("PRAGMA foreign_keys = OFF")  # dropping a table that is made anew must touch no other
    for version in missing:
        if missing.start > 1:
            logger.info("the ledger %s becomes one of version %d; it is not served meanwhile", path, version)
        with telling(path, f"the ledger {path} becomes one of version {version}"):
            _migrate_to(connection, path, version, scripts[version - 1])
    connection.execute("PRAGMA foreign_keys = ON")


def _migrate_to(connection: sqlite3.Connection, path: Path, version: int, script: str) -> None:
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
    connection.executescript(f"BEGIN IMMEDIATE; {script}; {marks}")
    # Only a table that is made anew can lose what refers to it; looking at all references reads the whole ledger.
    is_made_anew = "DROP TABLE" in script
    dangling = connection.execute("PRAGMA foreign_key_check").fetchone() if is_made_anew else None
    if dangling is not None:
        connection.execute("ROLLBACK")
        problem = f"a row of its table {dangling[0]} refers to one of {dangling[2]} that is not there"
        raise StoreRefused(path=str(path), problem=problem)
    connection.execute("COMMIT")

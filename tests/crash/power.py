"""A disk that loses power: what SQLite writes is recorded, and what of it a power cut could leave is made again.

SQLite's own VFS is hooked in this process, below the driver: every file that it opens for the ledger tells of its
writes, truncations and syncs, and does them. At a power cut, what a file was written before its last sync is on the
disk. Of what came after, each write may be there, or not, or in part (cut at a sector), whatever the others are.
"""

import ctypes
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512

# Where these fields are in sqlite3_vfs and sqlite3_io_methods of a 64-bit build (sqlite3.h).
_X_OPEN = 40
_X_WRITE, _X_TRUNCATE, _X_SYNC = 24, 32, 40
_IO_METHODS_BYTES = 152

_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class CannotHook(Exception):
    """This Python's sqlite3 does not use a shared library that can be reached."""


@dataclass(frozen=True, slots=True)
class Written:
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    path: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Somebody was told that this is done."""

    what: Any


Event = Written | Truncated | Synced | Acknowledged


@dataclass
class Recording:
    """Everything that happened, in order."""

    events: list[Event] = field(default_factory=list)

    def acknowledge(self, what: Any) -> None:
        self.events.append(Acknowledged(what))

    def syncs(self) -> int:
        return sum(isinstance(event, Synced) for event in self.events)


@contextmanager
def recording(folder: Path) -> Iterator[Recording]:
    """Record what happens to SQLite's files in the folder; CannotHook if that cannot be."""
    record, hooks = Recording(), _Hooks(str(folder))
    hooks.install(record.events)
    try:
        yield record
    finally:
        hooks.remove()


class _Hooks:
    """The default VFS's ``xOpen``, and of each file that it opens the methods that write."""

    def __init__(self, folder: str) -> None:
        try:
            library = ctypes.CDLL("libsqlite3.so.0")
        except OSError as exc:
            raise CannotHook from exc
        library.sqlite3_libversion.restype = ctypes.c_char_p
        if library.sqlite3_libversion().decode() != sqlite3.sqlite_version:
            raise CannotHook
        library.sqlite3_vfs_find.restype = ctypes.c_void_p
        self._folder = folder
        self._x_open = ctypes.c_void_p.from_address(library.sqlite3_vfs_find(None) + _X_OPEN)
        self._original = self._x_open.value
        self._kept: list[Any] = []  # what C still points to: files may be closed after the hooks are gone

    def install(self, events: list[Event]) -> None:
        open_original = _OPEN(self._original or 0)

        def open_hooked(vfs: int, name: bytes | None, file: int, flags: int, out_flags: int) -> int:
            code = int(open_original(vfs, name, file, flags, out_flags))
            path = (name or b"").decode()
            # The rollback journal of the time before WAL is deleted, durably, before anything is acknowledged.
            if code == 0 and path.startswith(self._folder) and not path.endswith(("-shm", "-journal")):
                self._hook_file(file, path, events)
            return code

        hooked = _OPEN(open_hooked)
        self._kept.append(hooked)
        self._x_open.value = ctypes.cast(hooked, ctypes.c_void_p).value
        probe = sqlite3.connect(f"{self._folder}/probe.db")
        probe.execute("CREATE TABLE probe (x)")
        probe.close()
        if not events:
            self.remove()
            raise CannotHook
        events.clear()

    def remove(self) -> None:
        self._x_open.value = self._original
        _forever.append(self._kept)

    def _hook_file(self, file: int, path: str, events: list[Event]) -> None:
        methods = ctypes.c_void_p.from_address(file)
        copy = ctypes.create_string_buffer(ctypes.string_at(methods.value or 0, _IO_METHODS_BYTES), _IO_METHODS_BYTES)
        address = ctypes.addressof(copy)

        def original(offset: int) -> int:
            return ctypes.c_void_p.from_address(address + offset).value or 0

        write, truncate, sync = (
            _WRITE(original(_X_WRITE)),
            _TRUNCATE(original(_X_TRUNCATE)),
            _SYNC(original(_X_SYNC)),
        )

        def write_hooked(file: int, data: int, amount: int, offset: int) -> int:
            events.append(Written(path, offset, ctypes.string_at(data, amount)))
            return int(write(file, data, amount, offset))

        def truncate_hooked(file: int, size: int) -> int:
            events.append(Truncated(path, size))
            return int(truncate(file, size))

        def sync_hooked(file: int, flags: int) -> int:
            code = int(sync(file, flags))
            events.append(Synced(path))  # on the disk only when it has returned
            return code

        for offset, hook in (
            (_X_WRITE, _WRITE(write_hooked)),
            (_X_TRUNCATE, _TRUNCATE(truncate_hooked)),
            (_X_SYNC, _SYNC(sync_hooked)),
        ):
            self._kept.append(hook)
            ctypes.c_void_p.from_address(address + offset).value = ctypes.cast(hook, ctypes.c_void_p).value
        self._kept.append(copy)
        methods.value = address


_forever: list[Any] = []


# --- after the cut --------------------------------------------------------------------------------------------------


def after_power_cut(events: list[Event], folder: Path, chance: random.Random, *, kept: float) -> None:
    """Make in the folder what the disk may hold after these events; ``kept``: the share of unsynced writes on it."""
    for path in {event.path for event in events if not isinstance(event, Acknowledged)}:
        mine = [event for event in events if not isinstance(event, Acknowledged) and event.path == path]
        last_sync = max((number for number, event in enumerate(mine) if isinstance(event, Synced)), default=-1)
        content = bytearray()
        for number, event in enumerate(mine):
            is_certain = number < last_sync
            if is_certain or chance.random() < kept:
                _apply(content, event, None if is_certain else chance)
        (folder / Path(path).name).write_bytes(bytes(content))


def _apply(content: bytearray, event: Event, chance: random.Random | None) -> None:
    """Do what the event did; with ``chance``, a write perhaps only in some of its sectors."""
    match event:
        case Truncated(size=size):
            del content[size:]
        case Written(offset=offset, data=data):
            end = len(data)
            if chance is not None and chance.random() < 0.3:
                end = chance.randrange(0, len(data) + SECTOR_BYTES, SECTOR_BYTES)
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data[:end])] = data[:end]

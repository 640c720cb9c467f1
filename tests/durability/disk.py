"""A disk between SQLite and its files: it remembers every write and every sync, and fails where it is told to.

It is a VFS registered in the very SQLite that Python's ``sqlite3`` uses, through ``ctypes``: the ledger's own writer
runs on it unchanged, and nothing has to be compiled. It wraps SQLite's default VFS: a file that was opened is SQLite's
own in every respect, but for writing, truncating and syncing, which pass through here.
"""

import _sqlite3
import ctypes
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

# Result codes of SQLite.
OK, FULL = 0, 13
IO_ERROR_WRITE, IO_ERROR_SYNC = 10 | 3 << 8, 10 | 4 << 8

Address = ctypes.c_void_p
Open = ctypes.CFUNCTYPE(ctypes.c_int, Address, Address, Address, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
Delete = ctypes.CFUNCTYPE(ctypes.c_int, Address, ctypes.c_char_p, ctypes.c_int)
Close = ctypes.CFUNCTYPE(ctypes.c_int, Address)
Write = ctypes.CFUNCTYPE(ctypes.c_int, Address, Address, ctypes.c_int, ctypes.c_int64)
Truncate = ctypes.CFUNCTYPE(ctypes.c_int, Address, ctypes.c_int64)
Sync = ctypes.CFUNCTYPE(ctypes.c_int, Address, ctypes.c_int)


def _pointers(names: str) -> tuple[tuple[str, type[Address]], ...]:
    return tuple((name, Address) for name in names.split())


class Vfs(ctypes.Structure):
    """``sqlite3_vfs``: its layout is part of SQLite's stable interface."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", Address),
        ("zName", ctypes.c_char_p),
        ("pAppData", Address),
        *_pointers("xOpen xDelete xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep"),
        *_pointers("xCurrentTime xGetLastError xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall"),
    )


class Methods(ctypes.Structure):
    """``sqlite3_io_methods``, likewise."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        *_pointers("xClose xRead xWrite xTruncate xSync xFileSize xLock xUnlock xCheckReservedLock xFileControl"),
        *_pointers("xSectorSize xDeviceCharacteristics xShmMap xShmLock xShmBarrier xShmUnmap xFetch xUnfetch"),
    )


class Kind(Enum):
    """What was done to a file."""

    CREATE = "create"  # it was not there
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    DELETE = "delete"
    NOTE = "note"  # by the test


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, after it happened."""

    kind: Kind
    name: str  # of the file, without its folder; of a note: ""
    offset: int = 0  # of a write; of a truncation, the new size
    data: bytes = b""
    note: Any = None


# Asked before anything is done: the result code of SQLite that it fails with, or OK. It may also wait.
Fault = Callable[[Kind, str], int]


def no_fault(_kind: Kind, _name: str) -> int:
    """Nothing fails."""
    return OK


@dataclass
class Disk:
    """What happened in one folder."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    fault: Fault = no_fault
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: Event) -> None:
        """Something happened."""
        with self._lock:
            self.events.append(event)

    def note(self, note: Any) -> None:
        """Record what the test knows now, in its place among the events."""
        self.add(Event(Kind.NOTE, "", note=note))


class CannotWatch(Exception):
    """This Python has its SQLite linked in: it cannot be reached from outside."""


class _Shim:
    """The VFS. There is one a process; it is never unregistered, only not the default."""

    def __init__(self) -> None:
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        self._register = library.sqlite3_vfs_register
        self._register.argtypes = (Address, ctypes.c_int)
        library.sqlite3_vfs_find.restype = Address
        library.sqlite3_libversion.restype = ctypes.c_char_p
        if library.sqlite3_libversion().decode() != sqlite3.sqlite_version:
            raise AttributeError("another SQLite than Python's own answered")
        self._original_address = library.sqlite3_vfs_find(None)
        self._original = Vfs.from_address(self._original_address)
        self._vfs = Vfs.from_buffer_copy(self._original)
        self._vfs.zName = b"watched"
        self._callbacks = [Open(self._open), Delete(self._delete)]
        self._vfs.xOpen, self._vfs.xDelete = (ctypes.cast(each, Address).value for each in self._callbacks)
        self._methods: dict[int, tuple[Methods, Methods]] = {}  # the original and ours, by the original's address
        self._files: dict[int, tuple[Disk, str, Methods]] = {}  # by the address of the open file
        self.disks: list[Disk] = []
        self._register(ctypes.addressof(self._vfs), 0)

    def be_default(self, is_default: bool) -> None:
        self._register(ctypes.addressof(self._vfs) if is_default else self._original_address, 1)

    def _disk_of(self, path: bytes | None) -> tuple[Disk, str] | None:
        place = Path((path or b"").decode())
        return next(((disk, place.name) for disk in self.disks if place.parent == disk.folder), None)

    # The name is passed on as the very pointer that it came as: SQLite keeps it for as long as the file is open, and
    # names the -shm file after it. A copy that is freed would be another name by then.
    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out_flags: Any) -> int:
        path = ctypes.string_at(name) if name else None
        watched = self._disk_of(path)
        is_new = watched is not None and not Path((path or b"").decode()).exists()
        code = int(Open(self._original.xOpen)(self._original_address, name, file, flags, out_flags))
        if code != OK or watched is None:
            return code
        disk, short_name = watched
        methods_address = Address.from_address(file).value
        assert methods_address is not None
        original, ours = self._methods_for(methods_address)
        self._files[file] = (disk, short_name, original)
        Address.from_address(file).value = ctypes.addressof(ours)
        if is_new:
            disk.add(Event(Kind.CREATE, short_name))
        return OK

    def _methods_for(self, address: int) -> tuple[Methods, Methods]:
        if address not in self._methods:
            original = Methods.from_address(address)
            ours = Methods.from_buffer_copy(original)
            callbacks: tuple[Any, ...] = (
                Close(self._close),
                Write(self._write),
                Truncate(self._truncate),
                Sync(self._sync),
            )
            self._callbacks += callbacks
            addresses = (ctypes.cast(each, Address).value for each in callbacks)
            ours.xClose, ours.xWrite, ours.xTruncate, ours.xSync = addresses
            self._methods[address] = (original, ours)
        return self._methods[address]

    def _delete(self, _vfs: int, path: bytes, sync_folder: int) -> int:
        code = int(Delete(self._original.xDelete)(self._original_address, path, sync_folder))
        watched = self._disk_of(path)
        if code == OK and watched is not None:
            watched[0].add(Event(Kind.DELETE, watched[1]))
        return code

    def _close(self, file: int) -> int:
        _, _, original = self._files.pop(file)
        return int(Close(original.xClose)(file))

    def _write(self, file: int, data: int, size: int, offset: int) -> int:
        disk, name, original = self._files[file]
        code = disk.fault(Kind.WRITE, name) or int(Write(original.xWrite)(file, data, size, offset))
        if code == OK:
            disk.add(Event(Kind.WRITE, name, offset, ctypes.string_at(data, size)))
        return code

    def _truncate(self, file: int, size: int) -> int:
        disk, name, original = self._files[file]
        code = disk.fault(Kind.TRUNCATE, name) or int(Truncate(original.xTruncate)(file, size))
        if code == OK:
            disk.add(Event(Kind.TRUNCATE, name, size))
        return code

    def _sync(self, file: int, flags: int) -> int:
        disk, name, original = self._files[file]
        code = disk.fault(Kind.SYNC, name) or int(Sync(original.xSync)(file, flags))
        if code == OK:
            disk.add(Event(Kind.SYNC, name))
        return code


_shims: list[_Shim] = []


@contextmanager
def watched(folder: Path) -> Iterator[Disk]:
    """Let all that ``sqlite3`` opens in this folder meanwhile go through a Disk; CannotWatch if that cannot be."""
    if not _shims:
        try:
            _shims.append(_Shim())
        except (AttributeError, OSError) as exc:
            raise CannotWatch from exc
    shim, disk = _shims[0], Disk(folder.resolve())
    shim.disks.append(disk)
    shim.be_default(True)
    try:
        yield disk
    finally:
        shim.disks.remove(disk)
        if not shim.disks:
            shim.be_default(False)

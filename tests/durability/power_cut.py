"""What a disk may hold after the power went: what was synced, and of the rest anything.

Of the writes since a file's last sync, each 512-byte sector may have arrived or not, whatever their order was. A file
that was made may be missing until its folder was synced, which SQLite does with the first sync of a WAL or journal that
it made. The ``-shm`` file is memory: it is gone.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from durability.disk import Event, Kind

SECTOR_BYTES = 512


@dataclass
class _File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)
    is_linked: bool = False  # its name survives


class Platter:
    """The files of a folder as they are while events are played to it."""

    def __init__(self, before: dict[str, bytes]) -> None:
        self._files = {name: _File(bytearray(data), is_linked=True) for name, data in before.items()}

    def play(self, event: Event) -> None:
        """Something happened."""
        if event.kind is Kind.NOTE or event.name.endswith("-shm"):
            return
        file = self._files.setdefault(event.name, _File())
        match event.kind:
            case Kind.WRITE | Kind.TRUNCATE:
                file.pending.append(event)
            case Kind.SYNC:
                for pending in file.pending:
                    _apply(file.synced, pending)
                file.pending = []
                if not file.is_linked and event.name.endswith(("-wal", "-journal")):
                    for each in self._files.values():  # SQLite syncs the folder with the first sync of such a file
                        each.is_linked = True
                file.is_linked = True
            case Kind.DELETE:
                del self._files[event.name]

    def nothing_else(self) -> dict[str, bytes]:
        """Nothing arrived that was not synced."""
        return {name: bytes(file.synced) for name, file in self._files.items() if file.is_linked}

    def everything(self) -> dict[str, bytes]:
        """All arrived: as after the death of the process only."""
        return {name: _with(file, file.pending) for name, file in self._files.items()}

    def anything(self, chance: random.Random) -> dict[str, bytes]:
        """Some sectors arrived, others did not."""
        return {
            name: _with(file, _torn(file.pending, chance))
            for name, file in self._files.items()
            if file.is_linked or chance.random() < 0.5
        }


def _with(file: _File, events: Iterable[Event]) -> bytes:
    data = bytearray(file.synced)
    for event in events:
        _apply(data, event)
    return bytes(data)


def _apply(data: bytearray, event: Event) -> None:
    if event.kind is Kind.TRUNCATE:
        del data[event.offset :]
        return
    end = event.offset + len(event.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[event.offset : end] = event.data


def _torn(pending: Sequence[Event], chance: random.Random) -> Iterator[Event]:
    arrives = chance.random()
    for event in pending:
        if event.kind is Kind.TRUNCATE:
            if chance.random() < arrives:
                yield event
            continue
        first = 0
        while first < len(event.data):
            # To the next boundary of a sector of the disk.
            end = min(len(event.data), first + SECTOR_BYTES - (event.offset + first) % SECTOR_BYTES)
            if chance.random() < arrives:
                yield Event(Kind.WRITE, event.name, event.offset + first, event.data[first:end])
            first = end

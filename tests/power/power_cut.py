"""What a disk may hold after its power was cut, from a recording of what was written to it and when it was synced.

What the last sync of a file covers is there. Of what was written to it later, anything may be: nothing, all, or any of
its sectors, as a drive's cache may write them in any order and stop anywhere.
"""

import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakes import FakeClock
from ledger_rows import NOW_US, a_grant, differences, open_wallet

from metergate.stores.sqlite import SqliteLedgerStore

HERE = Path(__file__).parent
SECTOR_BYTES = 512
VICTIM_SECONDS_MAX = 50.0
HEADER = struct.Struct("<ccQI")

# A stream's amounts; the wallet pays for all streams of the soak.
WALLET_MICROCREDITS = 1_000_000_000


class NoCompiler(Exception):
    """There is no C compiler to build the recorder with."""


@dataclass(frozen=True, slots=True)
class Record:
    """A write, truncation or sync of a file, or an acknowledgement."""

    kind: str  # W, T, S; A: acknowledged
    file: str  # D: the database, L: its log
    offset: int  # bytes; of a truncation, the size
    data: bytes


@dataclass(slots=True)
class Disk:
    """A file on a disk with a cache."""

    durable: bytearray
    pending: list[Record] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Go on to the next record of this file."""
        if record.kind != "S":
            self.pending.append(record)
            return
        for write in self.pending:
            _apply(self.durable, write, 0, len(write.data))
        self.pending.clear()

    def after_power_cut(self, chance: random.Random) -> bytes:
        """What is there when the power comes back."""
        content = bytearray(self.durable)
        share = chance.choice((0.0, 0.0, 0.5, 0.9, 1.0))  # of what was not synced; often nothing, the classic loss
        for write in self.pending:
            if write.kind == "T":
                if chance.random() < share:
                    _apply(content, write, 0, 0)
                continue
            for begin, end in _sectors(write):
                if chance.random() < share:
                    _apply(content, write, begin, end)
        return bytes(content)


def _sectors(write: Record) -> Iterator[tuple[int, int]]:
    """The parts of a write that fall into one sector of the disk each."""
    begin = 0
    while begin < len(write.data):
        end = min(begin + SECTOR_BYTES - (write.offset + begin) % SECTOR_BYTES, len(write.data))
        yield begin, end
        begin = end


def _apply(content: bytearray, write: Record, begin: int, end: int) -> None:
    if write.kind == "T":
        del content[write.offset :]
        content.extend(bytes(write.offset - len(content)))
        return
    first, last = write.offset + begin, write.offset + end
    content.extend(bytes(max(0, last - len(content))))
    content[first:last] = write.data[begin:end]


@dataclass(frozen=True, slots=True)
class Recording:
    """What a victim did to a ledger that was like this before."""

    before: bytes
    records: Sequence[Record]

    @property
    def syncs(self) -> int:
        """How often the victim waited for the disk."""
        return sum(record.kind == "S" for record in self.records)

    @property
    def acknowledgements(self) -> int:
        """How many operations were acknowledged."""
        return sum(record.kind == "A" for record in self.records)


async def record_victim(folder: Path, synchronous: str, streams: int) -> Recording:
    """Run the victim to its end; NoCompiler where its recorder cannot be built."""
    ledger, recording, recorder = folder / "ledger.db", folder / "recording", folder / "recording.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler
    build = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(recorder), str(HERE / "recording.c")]
    subprocess.run([*build, "-ldl"], check=True)  # noqa: ASYNC221 - a second, and nothing else runs here
    store = await SqliteLedgerStore.open(ledger, clock=FakeClock(NOW_US), owner_id="first", create=True)
    await open_wallet(store, a_grant(amount=WALLET_MICROCREDITS))
    await store.close()
    before = ledger.read_bytes()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(recorder),
        "METERGATE_LEDGER": str(ledger.resolve()),
        "METERGATE_RECORDING": str(recording),
    }
    command = [sys.executable, str(HERE / "power_victim.py"), str(ledger), synchronous, str(streams)]
    subprocess.run(command, env=environment, check=True, timeout=VICTIM_SECONDS_MAX)  # noqa: ASYNC221 - see above
    return Recording(before, list(_read(recording.read_bytes())))


def _read(recording: bytes) -> Iterator[Record]:
    position = 0
    while position < len(recording):
        kind, file, offset, length = HEADER.unpack_from(recording, position)
        position += HEADER.size
        yield Record(kind.decode(), file.decode(), offset, recording[position : position + length])
        position += length


@dataclass(slots=True)
class Survey:
    """What was found after all cuts."""

    cuts: int = 0
    lost: int = 0  # cuts after which something acknowledged was not there
    unclean: int = 0  # cuts after which the ledger did not verify


async def cut_power(folder: Path, recording: Recording, *, cuts: int, seed: int) -> Survey:
    """Cut the power at so many random places of the recording, and see what a gateway finds each time."""
    chance, survey = random.Random(seed), Survey()
    places = sorted(chance.randrange(1, len(recording.records) + 1) for _ in range(cuts))
    disks = {"D": Disk(bytearray(recording.before)), "L": Disk(bytearray())}
    acknowledged: dict[str, dict[str, int]] = {}
    done = 0
    for place in places:
        for record in recording.records[done:place]:
            if record.kind == "A":
                what = json.loads(record.data)
                acknowledged.setdefault(what.pop("reservation"), {}).update(what)
            else:
                disks[record.file].take(record)
        done = place
        after = folder / f"cut-{survey.cuts}"
        after.mkdir()
        (after / "ledger.db").write_bytes(disks["D"].after_power_cut(chance))
        (after / "ledger.db-wal").write_bytes(disks["L"].after_power_cut(chance))
        await _survey(after / "ledger.db", acknowledged, survey)
        shutil.rmtree(after)
    return survey


async def _survey(ledger: Path, acknowledged: dict[str, dict[str, int]], survey: Survey) -> None:
    """Open it as a gateway does, which settles what was open, and look for everything that was acknowledged."""
    survey.cuts += 1
    store = await SqliteLedgerStore.open(ledger, clock=FakeClock(NOW_US + 1), owner_id="heir", create=False)
    try:
        survey.unclean += bool(await differences(store))
    finally:
        await store.close()
    connection = sqlite3.connect(ledger)
    sql = "SELECT reservation_id, captured_microcredits, charged_microcredits, close_cause FROM charges"
    charges = {row[0]: row[1:] for row in connection.execute(sql)}
    connection.close()
    survey.lost += not all(_is_there(charges.get(name), what) for name, what in acknowledged.items())


def _is_there(charge: tuple[int, int, str] | None, what: dict[str, int]) -> bool:
    """Whether the charge, the heir's or the victim's own, covers what was acknowledged."""
    if charge is None:
        return False
    captured_microcredits, charged_microcredits, close_cause = charge
    if "charged" in what:
        return (charged_microcredits, close_cause) == (what["charged"], "FINISHED")
    return captured_microcredits >= what["captured"]

"""A gateway's store under load, with its writes recorded: ``power_victim.py <ledger> <FULL or NORMAL> <streams>``.

It appends what it was told was done to the same recording (kind A), and dies without closing anything.
"""

import asyncio
import json
import os
import sqlite3
import struct
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from fakes import FakeClock  # noqa: E402
from ledger_rows import NOW_US, a_capture, a_settle, reserve  # noqa: E402

from metergate.stores.sqlite import SqliteLedgerStore, connection  # noqa: E402

AT_ONCE = 4
CAPTURES = (20, 35, 60)

# Of the WAL's pages: a checkpoint comes every few transactions, and so do cuts in the midst of one.
CHECKPOINT_PAGES = 40

_recording = os.open(os.environ["METERGATE_RECORDING"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def acknowledged(**what: str | int) -> None:
    data = json.dumps(what).encode()
    os.write(_recording, struct.pack("<ccQI", b"A", b"-", 0, len(data)) + data)


async def stream(store: SqliteLedgerStore, name: str) -> None:
    await reserve(store, name)
    acknowledged(reservation=name, captured=9)
    for target in CAPTURES:
        await store.capture(a_capture(target, name, owner=store.owner, delivered_microcredits=9))
        acknowledged(reservation=name, captured=target)
    await store.settle(a_settle(58, name, owner=store.owner, captured=60))
    acknowledged(reservation=name, charged=58)


async def main(path: Path, synchronous: str, streams: int) -> None:
    set_up = connection._set_up

    def set_up_otherwise(opened: sqlite3.Connection, ledger: Path) -> None:
        set_up(opened, ledger)
        opened.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if synchronous != "FULL":
            opened.execute(f"PRAGMA synchronous = {synchronous}")

    vars(connection)["_set_up"] = set_up_otherwise
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="victim", create=False)
    names = iter([f"stream-{number}" for number in range(streams)])

    async def lane() -> None:
        for name in names:
            await stream(store, name)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(lane())
    os._exit(0)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

"""A process that opens reservations on a ledger, says so, and waits to be killed: ``crash_victim.py <ledger>``."""

import asyncio
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from fakes import FakeClock  # noqa: E402
from ledger_rows import NOW_US, a_capture, a_grant, open_wallet, reserve  # noqa: E402

from metergate.stores.sqlite import SqliteLedgerStore  # noqa: E402


async def main(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="victim", create=True)
    await open_wallet(store, a_grant(amount=1_000))
    await reserve(store, "captured")
    await store.capture(a_capture(40, "captured", owner=store.owner, delivered_microcredits=9))
    await reserve(store, "untouched", capture_microcredits=0)
    print("ready", flush=True)  # noqa: T201
    await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1])))

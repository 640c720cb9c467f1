"""Prunes a ledger as a gateway does, in a process of its own whose memory can be seen: ``pruning.py <ledger>``."""

import asyncio
import sys
from pathlib import Path

from metergate.clock import SystemClock
from metergate.metering.upkeep import Upkeep
from metergate.stores.sqlite import SqliteLedgerStore


async def main(path: Path) -> None:
    """Prune until nothing old is left; it must have been something."""
    clock = SystemClock()
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="soak", create=False)
    pruned = 0

    def count(reservations: int) -> None:
        nonlocal pruned
        pruned += reservations

    upkeep = Upkeep(store, clock, lambda _: False, retention_days=1, swept=lambda _: None, pruned=count)
    try:
        await upkeep.look()
    finally:
        await store.close()
    assert pruned, "nothing was pruned"


asyncio.run(main(Path(sys.argv[1])))

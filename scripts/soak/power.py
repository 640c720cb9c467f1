"""Power cuts at random moments of many runs of work, each with other unsynced writes lost, torn or kept."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from durability.cuts import power_cuts
from durability.workplace import CHECKPOINT_PAGES, fast_folder

from metergate.stores.sqlite import connection
from soak.parts import Figures, Step

CUTS_A_RUN = 250


@contextmanager
def often_checkpointed() -> Iterator[None]:
    """Ledgers whose checkpoints come every few commits, and no line for each of the recoveries."""
    usual, connection.CHECKPOINT_PAGES = connection.CHECKPOINT_PAGES, CHECKPOINT_PAGES
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        connection.CHECKPOINT_PAGES = usual
        logging.disable(logging.NOTSET)


def power(cuts: int, step: Step) -> Figures:
    """Cut so often; nothing that was acknowledged may be lost."""
    with often_checkpointed():
        return asyncio.run(_power(cuts, step))


async def _power(cuts: int, step: Step) -> Figures:
    runs = -(-cuts // CUTS_A_RUN)
    with fast_folder() as folder:
        for seed in range(runs):
            async for missing in power_cuts(folder, seed, min(CUTS_A_RUN, cuts - seed * CUTS_A_RUN)):
                assert not missing, f"seed {seed} lost {missing}"
                step()
    return {"runs of work:": f"{runs:,}", "of them on a ledger just made:": f"{runs // 2:,}", "cuts that lost:": "0"}

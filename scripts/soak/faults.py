"""Storage that fails at every write and every sync of a run of work, once and for a while."""

import asyncio
from itertools import product

from durability.faults import WAYS, FailsAt, work_with
from durability.workplace import fast_folder

from metergate.stores import group_commit
from soak.parts import Figures, Step
from soak.power import often_checkpointed


def faults(points: int, step: Step) -> Figures:
    """So many points in all, or as many as there are: the first ones of each way of failing."""
    usual = group_commit.REOPEN_WAIT_S_MIN, group_commit.REOPEN_WAIT_S_MAX
    group_commit.REOPEN_WAIT_S_MIN = group_commit.REOPEN_WAIT_S_MAX = 0.0
    try:
        with often_checkpointed():
            return asyncio.run(_faults(points, step))
    finally:
        group_commit.REOPEN_WAIT_S_MIN, group_commit.REOPEN_WAIT_S_MAX = usual


async def _faults(points: int, step: Step) -> Figures:
    ways = list(product(WAYS.values(), (1, 7)))
    struck = tried = 0
    with fast_folder() as folder:
        for (kind, code), times in ways:
            for first in range(-(-points // len(ways))):
                fault = FailsAt(kind, code, first, times)
                struck += await work_with(folder / str(tried), fault) > 0
                tried += 1
                step()
                if fault.seen <= first:  # the work was over before
                    break
    return {"runs of work:": f"{tried:,}", "in which operations failed:": f"{struck:,}", "lost or different:": "0"}

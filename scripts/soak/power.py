"""Power cuts at random moments of a run, each with other unsynced writes lost or torn."""

import asyncio
import logging
import random
import tempfile
from pathlib import Path

from crash.power import recording
from crash.test_power_loss import CHECKPOINT_PAGES, cut, work

from metergate.stores.sqlite import connection
from soak.parts import Figures, Step


def power(cuts: int, step: Step) -> Figures:
    """Cut so often; nothing that was acknowledged may be lost."""
    logging.disable(logging.CRITICAL)
    usual, connection.CHECKPOINT_PAGES = connection.CHECKPOINT_PAGES, CHECKPOINT_PAGES
    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(_power(Path(folder), cuts, step))
    finally:
        connection.CHECKPOINT_PAGES = usual
        logging.disable(logging.NOTSET)


async def _power(folder: Path, cuts: int, step: Step) -> Figures:
    (folder / "disk").mkdir()
    with recording(folder / "disk") as disk:
        await work(folder / "disk", disk)
        events = list(disk.events)
    chance = random.Random()
    for _ in range(cuts):
        missing = await cut(events, folder, chance)
        assert not missing, f"lost: {missing}"
        step()
    return {"writes and syncs recorded:": f"{len(events):,}", "acknowledged operations lost:": "0"}

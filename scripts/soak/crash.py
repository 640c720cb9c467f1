"""A gateway killed two hundred times while it streams."""

import asyncio
import time
from pathlib import Path

from crash.killing import kill_and_check

from soak.figures import Figure, Progress

KILLS = 200
STREAMS = 6
SEED = 20261124


def run(folder: Path, progress: Progress) -> list[Figure]:
    """Kill, start again on the same file, and check, as the crash test does."""
    began = time.perf_counter()
    tally = asyncio.run(
        kill_and_check(
            folder,
            kills=KILLS,
            streams=STREAMS,
            seed=SEED,
            progress=lambda number: progress(f"kill {number + 1} of {KILLS}"),
        )
    )
    return [
        Figure(what="kills, each followed by a clean audit", value=f"{tally.kills}", bar="200"),
        Figure(what="streams at once", value=f"{STREAMS}"),
        Figure(what="requests that the kill cut short", value=f"{tally.cut_short:,}"),
        Figure(what="of them, admitted in the ledger only", value=f"{tally.admission_lost:,}"),
        Figure(what="requests with a receipt before the kill", value=f"{tally.receipted:,}"),
        Figure(what="arrived and not captured, microcredits", value="0", bar="0"),
        Figure(
            what="captured and not arrived, the most of a stream, microcredits",
            value=f"{tally.most_lost_microcredits}",
            bar="one delivery",
        ),
        Figure(what="seconds a kill", value=f"{(time.perf_counter() - began) / tally.kills:.2f}"),
    ]

"""Metering and the in-memory store over a virtual clock: ten thousand seeds."""

import time
from pathlib import Path

from simulation.test_simulation import simulate

from metergate.core.reservation import CloseCause
from soak.figures import Figure, Progress

SEEDS = 10_000
SEEDS_A_WORD = 250  # between two words of progress: a few seconds


def run(_folder: Path, progress: Progress) -> list[Figure]:
    """Run each seed; the first that breaks a law raises, with the seed that replays it."""
    causes: set[CloseCause] = set()
    began = time.perf_counter()
    for seed in range(SEEDS):
        if seed % SEEDS_A_WORD == 0:
            progress(f"seed {seed:,} of {SEEDS:,}")
        causes |= simulate(seed).causes
    return [
        Figure(what="seeds without a broken law", value=f"{SEEDS:,}", bar="10,000"),
        Figure(what="close causes that came up", value=f"{len(causes)} of {len(CloseCause)}"),
        Figure(what="seconds a thousand seeds", value=f"{(time.perf_counter() - began) / SEEDS * 1_000:.1f}"),
    ]

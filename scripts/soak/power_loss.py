"""The power cut two thousand times while a store writes; and with synchronous=NORMAL, to know that it would be seen."""

import asyncio
from pathlib import Path

from power.power_cut import Survey, cut_power, record_victim

from soak.figures import Figure, Progress

STREAMS = 200
CUTS_A_WORD = 100  # between two words of progress, each with a seed of its own
CUTS, CUTS_OF_NORMAL = 2_000, 200
SEED = 20261124


def run(folder: Path, progress: Progress) -> list[Figure]:
    """Record a victim once in each mode, and cut it in many places."""
    for mode in ("full", "normal"):
        (folder / mode).mkdir()
    full, records, acknowledgements = asyncio.run(_cut(folder / "full", "FULL", CUTS, progress))
    normal, _, _ = asyncio.run(_cut(folder / "normal", "NORMAL", CUTS_OF_NORMAL, progress))
    return [
        Figure(what="power cuts, synchronous=FULL", value=f"{full.cuts:,}"),
        Figure(what="writes, syncs and acknowledgements recorded", value=f"{records:,}"),
        Figure(what="of them acknowledgements", value=f"{acknowledgements:,}"),
        Figure(what="cuts that lost what was acknowledged", value=f"{full.lost}", bar="0", is_met=full.lost == 0),
        Figure(what="cuts after which verify differs", value=f"{full.unclean}", bar="0", is_met=full.unclean == 0),
        Figure(
            what="the same with NORMAL: cuts that lost something",
            value=f"{normal.lost} of {normal.cuts}",
            bar="some",
            is_met=normal.lost > 0,
        ),
    ]


async def _cut(folder: Path, synchronous: str, cuts: int, progress: Progress) -> tuple[Survey, int, int]:
    progress(f"recording, synchronous={synchronous}")
    recording = await record_victim(folder, synchronous, STREAMS)
    found = Survey()
    for first in range(0, cuts, CUTS_A_WORD):
        progress(f"synchronous={synchronous}, cut {first:,} of {cuts:,}")
        survey = await cut_power(folder, recording, cuts=CUTS_A_WORD, seed=SEED + first)
        found.cuts += survey.cuts
        found.lost += survey.lost
        found.unclean += survey.unclean
    return found, len(recording.records), recording.acknowledgements

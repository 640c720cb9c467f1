"""What was acknowledged survives a power cut (L1): whatever the disk had not been made to keep is gone."""

from pathlib import Path

import pytest

from power.power_cut import NoCompiler, Recording, cut_power, record_victim

# ``make soak`` has more of each.
STREAMS, CUTS = 24, 60


async def _record(folder: Path, synchronous: str) -> Recording:
    try:
        return await record_victim(folder, synchronous, STREAMS)
    except NoCompiler:
        pytest.skip("needs a C compiler (cc) to record the writes of a process")


async def test_nothing_acknowledged_is_lost_and_the_ledger_verifies_wherever_the_power_is_cut(tmp_path: Path) -> None:
    recording = await _record(tmp_path, "FULL")
    assert recording.acknowledgements == STREAMS * 5
    assert any(record.kind == "W" and record.file == "D" for record in recording.records), "no checkpoint was recorded"
    survey = await cut_power(tmp_path, recording, cuts=CUTS, seed=20261124)
    assert (survey.cuts, survey.lost, survey.unclean) == (CUTS, 0, 0)


async def test_the_same_cuts_lose_what_was_acknowledged_with_synchronous_normal(tmp_path: Path) -> None:
    recording = await _record(tmp_path, "NORMAL")
    survey = await cut_power(tmp_path, recording, cuts=CUTS, seed=20261124)
    assert survey.lost > CUTS // 4, "the harness cannot see a loss"
    assert survey.unclean == 0, "NORMAL loses what is newest, and keeps what it has consistent"

"""The power goes at any moment: what was acknowledged is on the disk, whatever else arrived (L1, L3, L5)."""

import sqlite3
from pathlib import Path

import pytest

from durability.cuts import power_cuts
from metergate.stores.sqlite import connection

# ``make soak`` has more; one takes about 15 ms.
CUTS = 120


def be_only_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open ledgers with ``synchronous = NORMAL``, which the store itself would refuse."""
    set_up = connection._set_up

    def set_up_normal(opened: sqlite3.Connection, path: Path) -> None:
        set_up(opened, path)
        opened.execute("PRAGMA synchronous = NORMAL")

    monkeypatch.setattr(connection, "_set_up", set_up_normal)


@pytest.mark.parametrize("seed", [0, 1], ids=["a ledger", "a ledger that is just made"])
async def test_nothing_acknowledged_is_lost_whenever_the_power_goes(fast_folder: Path, seed: int) -> None:
    assert [missing async for missing in power_cuts(fast_folder, seed, CUTS) if missing] == []


async def test_with_less_than_full_syncing_acknowledged_work_is_lost(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_only_normal(monkeypatch)
    losses = [missing async for missing in power_cuts(fast_folder, 0, CUTS) if missing]
    assert len(losses) > CUTS // 10, "the harness does not bite"

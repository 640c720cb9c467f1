"""What the SQLite store reads before it serves, so that admissions find it: wallets."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_grant, a_refund, a_settle, differences, open_wallet, reserve

from metergate.stores.sqlite import SqliteLedgerStore, warming

CACHE_MEBIBYTES = 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def open_store(path: Path, *, create: bool = False) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(
        path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=create, cache_mebibytes=CACHE_MEBIBYTES
    )


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteLedgerStore]:
    store = await open_store(path, create=True)
    await open_wallet(store, a_grant("grant-1", 1_000_000))
    yield store
    await store.close()


async def test_wallets_are_read_beforehand_and_not_again(store: SqliteLedgerStore, path: Path) -> None:
    """Whatever is in the file after that, the first admission finds its payer."""
    await store.close()
    opened = await open_store(path)
    writing = opened._writer._connection
    assert writing is not None
    (page_bytes,) = writing.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:  # all but the schema's first page, and what was committed since the last close
        file.seek(page_bytes)
        file.write(bytes(path.stat().st_size - page_bytes))
    for select in warming.TREES:
        assert writing.execute(select, (9,)).fetchone()[0] is not None
    with pytest.raises(sqlite3.DatabaseError):
        writing.execute("SELECT max(amount_microcredits) FROM transfers").fetchall()
    os.truncate(path, 0)  # nothing of it is ever right again
    await opened.close()


@pytest.mark.parametrize("tree", warming.TREES)
async def test_reading_beforehand_goes_through_the_rows_that_admissions_read(
    store: SqliteLedgerStore, path: Path, tree: str
) -> None:
    with closing(sqlite3.connect(path)) as raw:
        plan = raw.execute(f"EXPLAIN QUERY PLAN {tree}", (9,)).fetchall()
    (scan,) = (step for *_, step in plan if step.startswith("SCAN ") and "subquery" not in step)
    assert scan in ("SCAN wallets", "SCAN authorizations", "SCAN grants USING INDEX grants_with_credit")


async def test_a_store_on_a_slow_disk_serves_before_all_wallets_are_read(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await store.close()
    monkeypatch.setattr(warming, "SECONDS_MAX", -1)
    monkeypatch.setattr(warming, "STEPS_BETWEEN_LOOKS", 1)
    caplog.set_level(logging.INFO)
    opened = await open_store(path)
    assert "not all wallets were read beforehand" in caplog.text
    await reserve(opened)
    assert await differences(opened) == []
    await opened.close()


async def test_a_grant_is_marked_as_spent_while_nothing_of_it_is_left_and_only_then(
    store: SqliteLedgerStore, path: Path
) -> None:
    """Marked with credit left, no request would find it; not marked, each would read it."""

    def marked() -> dict[str, int]:
        with closing(sqlite3.connect(path)) as raw:
            return dict(raw.execute("SELECT grant_id, is_spent FROM grants"))

    await store.add_grant(a_grant("small", 100, priority=1))
    await reserve(store, wanted_microcredits=100)
    assert marked() == {"grant-1": 0, "small": 0}, "set aside, not spent"
    await store.settle(a_settle(60, owner=store.owner, captured=60))
    assert marked() == {"grant-1": 0, "small": 0}
    await reserve(store, "rest", wanted_microcredits=50)
    await store.settle(a_settle(50, "rest", owner=store.owner, captured=50))
    assert marked() == {"grant-1": 0, "small": 1}
    await store.refund(a_refund(15, "charge-of-rest"))
    assert marked() == {"grant-1": 0, "small": 0}
    await reserve(store, "again", wanted_microcredits=5, minimum_microcredits=5, capture_microcredits=0)
    await store.settle(a_settle(5, "again", owner=store.owner, captured=5))
    assert marked() == {"grant-1": 0, "small": 1}
    assert await differences(store) == []

"""What the SQLite store reads beside its writer, and beforehand: charges of requests, wallets."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_grant, a_refund, a_reserve, a_settle, available, differences, open_wallet, reserve

from metergate.core.errors import RequestIdConflict, StoreUnavailable
from metergate.core.operations import Replayed, Reserved
from metergate.stores.sqlite import SqliteLedgerStore, charged_requests, warming
from metergate.stores.sqlite.charged_requests import REQUESTS_MIN

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


@pytest.mark.parametrize("count", [1, REQUESTS_MIN - 1, REQUESTS_MIN, 3 * REQUESTS_MIN])
async def test_requests_that_were_charged_are_known_in_a_batch_of_any_size(
    store: SqliteLedgerStore, count: int
) -> None:
    """Some new, some charged, some charged with other content; no charge is made twice."""
    names = [f"res-{number}" for number in range(count)]
    await asyncio.gather(*(reserve(store, name) for name in names[::2]))
    await asyncio.gather(*(store.settle(a_settle(9, name, owner=store.owner, captured=9)) for name in names[::2]))
    before = await available(store)
    contents = [b"other" if number % 4 == 0 else b"content" for number in range(count)]
    outcomes = await asyncio.gather(
        *(
            store.reserve(
                a_reserve(f"again-{name}", request_id=f"request-of-{name}", content_hash=content, owner=store.owner)
            )
            for name, content in zip(names, contents, strict=True)
        ),
        return_exceptions=True,
    )
    expected = [RequestIdConflict, Reserved, Replayed, Reserved]
    assert [type(outcome) for outcome in outcomes] == [expected[number % 4] for number in range(count)]
    assert before - await available(store) == 100 * (count // 2)
    assert await differences(store) == []


async def test_a_batch_whose_charges_cannot_be_read_fails_and_the_store_comes_back(
    store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise requests that were charged before would be charged again."""
    operations = [a_reserve(f"res-{number}", owner=store.owner) for number in range(REQUESTS_MIN)]

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(charged_requests, "_charges", fail)
        outcomes = await asyncio.gather(*map(store.reserve, operations), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    async with asyncio.timeout(30):
        while True:
            try:
                await store.check()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    assert await available(store) == 1_000_000
    await asyncio.gather(*(reserve(store, f"res-{number}") for number in range(REQUESTS_MIN)))
    assert await differences(store) == []


async def test_a_closed_store_leaves_no_thread(store: SqliteLedgerStore) -> None:
    await asyncio.gather(*(reserve(store, f"res-{number}") for number in range(REQUESTS_MIN)))
    assert _threads()
    await store.close()
    assert not _threads()


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ledger-requests")]


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

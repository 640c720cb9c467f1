"""What the SQLite writer remembers of its open reservations is what the file says, and no more than is open."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_capture, a_grant, a_settle, available, differences, open_wallet, reserve

from metergate.core.errors import StoreUnavailable
from metergate.stores import group_commit
from metergate.stores.sqlite import SqliteLedgerStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteLedgerStore]:
    opened = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(opened, a_grant())
    yield opened
    await opened.close()


def payers(path: Path) -> list[object]:
    """The rows of who pays, as they are stored."""
    with closing(sqlite3.connect(path)) as raw:
        return [
            raw.execute(sql).fetchall()
            for sql in ("SELECT * FROM wallets", "SELECT * FROM grants", "SELECT * FROM authorizations")
        ]


async def test_reserving_and_extending_write_the_reservation_and_nothing_of_who_pays(
    store: SqliteLedgerStore, path: Path
) -> None:
    before = payers(path)
    await reserve(store, wanted_microcredits=100)
    await store.capture(a_capture(150, owner=store.owner, wanted_microcredits=200))
    assert payers(path) == before
    assert await available(store) == 800
    assert await differences(store) == []
    await store.settle(a_settle(150, owner=store.owner))
    assert payers(path) != before
    assert await available(store) == 850


async def test_a_wallet_is_remembered_while_it_has_an_open_reservation(store: SqliteLedgerStore) -> None:
    memory = store._writer._open
    for name in ("one", "two"):
        await reserve(store, name, request_id=name)
    assert set(memory.payers) == {"alice"}
    assert set(memory.reservations) == {"one", "two"}
    await store.settle(a_settle(5, "one", owner=store.owner, captured=5))
    assert set(memory.payers) == {"alice"}
    await store.settle(a_settle(5, "two", owner=store.owner, captured=5))
    assert (memory.payers, memory.reservations, memory._by_request) == ({}, {}, {})


async def test_grants_that_are_spent_are_not_remembered_for_as_long_as_a_wallet_is_busy(
    store: SqliteLedgerStore,
) -> None:
    await reserve(store, "long", request_id="long", wanted_microcredits=10)
    await store.add_grant(a_grant("small", 20, priority=1))
    await reserve(store, "short", request_id="short", wanted_microcredits=20)
    await store.settle(a_settle(20, "short", owner=store.owner, captured=20))
    assert set(store._writer._open.payers["alice"].grants) == {"grant-1"}
    assert await available(store) == 990
    assert await differences(store) == []


async def test_what_was_remembered_is_gone_with_a_failed_commit(
    store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    await reserve(store, wanted_microcredits=100)
    await store.capture(a_capture(30, owner=store.owner))
    store._writer._fail(OSError("the answer was lost"))
    memory = store._writer._open
    assert (memory.payers, memory.reservations, memory._by_request) == ({}, {}, {})
    await store.check()  # opens it again, and recovers
    assert await available(store) == 970
    assert await differences(store) == []


async def test_a_batch_that_is_given_up_changes_no_memory(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    await reserve(store, wanted_microcredits=100)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM grants")
        other.commit()
    with pytest.raises(StoreUnavailable):
        await store.settle(a_settle(30, owner=store.owner, captured=30))
    assert not store._writer._open.payers

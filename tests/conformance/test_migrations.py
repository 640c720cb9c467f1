"""A ledger that an older version wrote is served by this one with all its data; what cannot be is left as it was.

``ledger_of_version_2.sql`` is what the program of version 2 stored: two subscribers; grants spent, expired and in use;
a charge of two grants, one of none; a released reservation, and an open one.
"""

import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from ledger_rows import (
    NOW_US,
    a_grant,
    a_key,
    a_refund,
    a_settle,
    an_adjustment,
    available,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.errors import StoreRefused
from metergate.core.reservation import Allocation, CloseCause
from metergate.core.rows import Charge, Grant, TransferKind, terms_of
from metergate.ports import ChargeFilter, TransferFilter
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore, connection, telling

ROWS = (Path(__file__).parent / "ledger_of_version_2.sql").read_text()
KEYS_BEGIN = 'INSERT INTO "keys"'


def make_ledger(path: Path, version: int) -> None:
    """The file as a program of that version left it."""
    rows = [line for line in ROWS.splitlines() if version > 1 or not line.startswith(KEYS_BEGIN)]
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute(f"PRAGMA application_id = {connection.APPLICATION_ID}")
        raw.execute(f"PRAGMA user_version = {version}")
        for script in connection.migrations()[:version]:
            raw.executescript(script)
        raw.executescript("\n".join(rows))
        if version == 1:
            raw.execute("INSERT INTO keys VALUES ('key-1', ?, 'auth-1', ?, NULL)", (b"h" * 32, NOW_US))


async def open_store(path: Path) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-2", create=False)


@pytest.mark.parametrize("version", [1, 2])
async def test_an_older_ledger_is_served_with_all_its_data(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.db"
    make_ledger(path, version)
    store = await open_store(path)
    charges = {row.reservation_id: row for row in (await _charges(store))}
    assert charges["two-grants"].allocations == (
        Allocation(grant_id="soon", amount_microcredits=60),
        Allocation(grant_id="late", amount_microcredits=20),
    )
    assert charges["free"].allocations == ()
    assert charges["open"].close_cause is CloseCause.CRASH, "recovered"
    assert charges["open"].allocations == (Allocation(grant_id="late", amount_microcredits=40),)
    assert (charges["two-grants"].delivered_microcredits, charges["open"].delivered_microcredits) == (80, 9)
    balances = {name: row.balance_microcredits for name, row in (await store.account_balances()).items()}
    assert balances == {"payments": -1_120, "breakage": 50, "revenue": 130, "grants": 940}
    transfers = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows
    added = {row.grant_id: row.grant_expire_time_us for row in transfers if row.kind is TransferKind.GRANT}
    assert added == {row.grant_id: row.expire_time_us for row in await _grants(store)}
    terms = {row.grant_id: row.grant_terms for row in transfers if row.kind is TransferKind.GRANT}
    assert terms == {row.grant_id: terms_of(row) for row in await _grants(store)}
    assert await available(store) == 980 - 40
    with closing(sqlite3.connect(path)) as raw:
        spent = dict(raw.execute("SELECT grant_id, is_spent FROM grants WHERE subscriber_id = 'alice'"))
        assert spent == {row.grant_id: row.remaining_microcredits == 0 for row in await _grants(store)}
        assert set(spent.values()) == {0, 1}
    grantee = await store.find_grantee(b"h" * 32)
    assert grantee is not None
    assert grantee.key == a_key(prefix="mg_abcdef" if version == 2 else "")
    await store.add_grant(a_grant("new"))
    assert await differences(store) == []
    await store.close()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(connection.migrations()),)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_the_terms_of_grants_that_version_7_made_are_those_of_their_rows(tmp_path: Path) -> None:
    """Of grants that corrections and the ledger itself made, too, and of each once."""
    path = tmp_path / "ledger.db"
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store)
    june: dict[str, Any] = {"rollover_microcredits_max": 30, "rollover_seconds": 60, "expire_time_us": NOW_US + 1}
    await store.add_grant(a_grant("june", 100, **june))
    await reserve(store, wanted_microcredits=90)
    await store.settle(a_settle(60, owner=store.owner, captured=60))
    for number, amount in enumerate((10, 20)):  # june is over: the first makes a grant, the second another one
        await store.refund(a_refund(amount, "charge-of-res-1", f"refund-{number}", now_us=NOW_US + 2))
    await reserve(store, "again", now_us=NOW_US + 3, wanted_microcredits=50)
    await store.settle(a_settle(50, "again", owner=store.owner, captured=50, now_us=NOW_US + 3))
    await store.refund(a_refund(50, "charge-of-again", "back", now_us=NOW_US + 4))  # to all of them, and makes none
    await store.adjust(an_adjustment(7, now_us=NOW_US + 4))
    await store.adjust(an_adjustment(-3, "taken", now_us=NOW_US + 4))
    assert await differences(store) == []
    before = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:  # as version 7 had it
        raw.execute("DROP TABLE request_filter")
        raw.execute("ALTER TABLE transfers DROP COLUMN grant_terms")
        for column in ("reserved_credits", "reserved_rest"):
            raw.execute(f"ALTER TABLE meta DROP COLUMN {column}")
        for index in ("erasures_unfinished", "erasures_with_copies"):
            raw.execute(f"DROP INDEX {index}")
        for column in ("erasing_subscriber_id", "leaves_copies"):
            raw.execute(f"ALTER TABLE erasures DROP COLUMN {column}")
        raw.execute("DROP INDEX grants_with_credit")
        raw.execute("ALTER TABLE grants DROP COLUMN is_spent")
        raw.execute("CREATE INDEX grants_with_credit ON grants (subscriber_id) WHERE unspent_microcredits > 0")
        raw.execute("PRAGMA user_version = 7")
    store = await open_store(path)
    assert (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows == before
    assert sum(row.grant_terms is not None for row in before) == 5
    assert await differences(store) == []
    await store.close()


async def test_an_upgraded_ledger_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    make_ledger(tmp_path / "old.db", 1)
    schemas = []
    for name in ("old.db", "new.db"):
        await (
            await SqliteLedgerStore.open(tmp_path / name, clock=FakeClock(NOW_US), owner_id="gateway-2", create=True)
        ).close()
        with closing(sqlite3.connect(tmp_path / name)) as raw:
            schemas.append(raw.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall())
    assert schemas[0] == schemas[1]


async def test_a_migration_that_takes_long_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    make_ledger(path, 2)
    monkeypatch.setattr(telling, "TOLD_EVERY_SECONDS", 0)
    caplog.set_level(logging.INFO)
    migrate_to = connection._migrate_to

    def wait_until_told(held: sqlite3.Connection, path: Path, version: int, script: str) -> None:
        told = f"becomes one of version {version}: 0 s so far, its WAL has"
        deadline_s = time.monotonic() + 30
        while told not in caplog.text:
            assert time.monotonic() < deadline_s, "nothing was told"
            time.sleep(0.001)
        migrate_to(held, path, version, script)

    monkeypatch.setattr(connection, "_migrate_to", wait_until_told)
    await (await open_store(path)).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ledger-telling"]


async def test_charges_outlive_their_reservations_and_authorizations(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make_ledger(path, 2)
    store = await open_store(path)
    held = store._writer._connection
    assert held is not None
    assert held.execute("PRAGMA foreign_keys").fetchone() == (1,)
    for sql in (
        "DELETE FROM keys",
        "DELETE FROM reservations WHERE subscriber_id = 'bob'",
        "DELETE FROM authorizations WHERE subscriber_id = 'bob'",
    ):
        assert held.execute(sql).rowcount > 0
    with pytest.raises(sqlite3.IntegrityError):
        held.execute("DELETE FROM wallets WHERE subscriber_id = 'bob'")
    await store.close()
    reader = await SqliteLedgerReader.open_read_only(path)
    assert (await reader.get_charge("bob", "charge-of-bobs")).charged_microcredits == 10
    await reader.close()


async def test_an_older_ledger_with_a_row_that_refers_to_nothing_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make_ledger(path, 2)
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DELETE FROM wallets WHERE subscriber_id = 'bob'")
        before = list(raw.iterdump())
    with pytest.raises(StoreRefused, match="refers to one of wallets that is not there"):
        await open_store(path)
    with closing(sqlite3.connect(path)) as raw:
        assert list(raw.iterdump()) == before
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)


async def test_a_store_of_a_newer_version_is_not_touched_by_an_older_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    await (await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)).close()
    content = path.read_bytes()
    newest = connection.migrations()
    monkeypatch.setattr(connection, "migrations", lambda: newest[:1])
    with pytest.raises(Exception, match=f"its version {len(newest)} is newer than this program's 1"):
        await open_store(path)
    assert path.read_bytes() == content


async def _charges(store: SqliteLedgerStore) -> tuple[Charge, ...]:
    return (await store.list_charges("alice", ChargeFilter(), cursor=None, size=99)).rows


async def _grants(store: SqliteLedgerStore) -> tuple[Grant, ...]:
    return (await store.list_grants("alice", cursor=None, size=99)).rows

"""What every LedgerStore promises of keys."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import DAY_US, NOW_US, a_consent, a_grant, a_key, a_wallet, differences, open_wallet

from metergate.core.errors import RequestInvalid
from metergate.core.times import TIME_US_MAX
from metergate.ports import Grantee, LedgerStore
from metergate.stores.sqlite import SqliteLedgerStore, connection


async def open_sqlite(path: Path) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    opened: LedgerStore = (
        MemoryLedgerStore(clock=FakeClock(NOW_US))
        if request.param == "memory"
        else await open_sqlite(tmp_path / "ledger.db")
    )
    await open_wallet(opened)
    yield opened
    await opened.close()


async def found(store: LedgerStore, secret_hash: bytes = b"h" * 32) -> Grantee:
    grantee = await store.find_grantee(secret_hash)
    assert grantee is not None
    return grantee


async def test_a_key_is_kept_with_its_prefix_and_expiry(store: LedgerStore) -> None:
    key = a_key(expire_time_us=NOW_US + DAY_US)
    assert await store.add_key(key) == key
    assert (await found(store)).key == key


@pytest.mark.parametrize("expire_time_us", [NOW_US, NOW_US - 1, -1, TIME_US_MAX + 1, 2**70])
async def test_a_new_key_that_could_never_be_used_is_refused(store: LedgerStore, expire_time_us: int) -> None:
    with pytest.raises(RequestInvalid, match="expire_time"):
        await store.add_key(a_key(expire_time_us=expire_time_us))
    assert await store.find_grantee(b"h" * 32) is None


async def test_a_whole_key_is_not_kept_as_its_prefix(store: LedgerStore) -> None:
    with pytest.raises(RequestInvalid, match="prefix"):
        await store.add_key(a_key(prefix="mg_" + "x" * 43))


async def test_the_last_use_of_a_key_never_goes_back(store: LedgerStore) -> None:
    await store.add_key(a_key())
    assert (await found(store)).key.last_used_time_us is None
    for use_time_us, last_used_time_us in ((5, 5), (9, 9), (7, 9)):
        await store.record_key_uses({"key-1": NOW_US + use_time_us, "unknown": NOW_US})
        assert (await found(store)).key.last_used_time_us == NOW_US + last_used_time_us


async def test_recording_no_use_is_harmless(store: LedgerStore) -> None:
    await store.record_key_uses({})


async def test_a_use_does_not_undo_a_revocation(store: LedgerStore) -> None:
    await store.add_key(a_key())
    await store.revoke_key("key-1", NOW_US)
    await store.record_key_uses({"key-1": NOW_US + 1})
    assert (await found(store)).key.revoke_time_us == NOW_US


async def test_keys_of_a_subscriber_are_listed_in_pages_and_nobody_elses(store: LedgerStore) -> None:
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob"))
    await store.add_key(a_key("of-bob", "auth-bob", b"b" * 32))
    ids = [f"key-{number}" for number in range(5)]
    for number, key_id in enumerate(ids):
        await store.add_key(a_key(key_id, secret_hash=bytes([number]) * 32))
    await store.revoke_key("key-3", NOW_US)
    cursor, listed, pages = None, [], 0
    while pages == 0 or cursor is not None:
        page = await store.list_keys("alice", cursor=cursor, size=2)
        listed += [grantee.key.key_id for grantee in page.rows]
        assert all(grantee.authorization.subscriber_id == "alice" for grantee in page.rows)
        cursor, pages = page.next_cursor, pages + 1
    assert (listed, pages) == (ids, 3)
    assert (await store.list_keys("nobody", cursor=None, size=2)).rows == ()


async def test_a_store_of_version_1_is_upgraded_with_all_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    newest = connection.migrations()
    with monkeypatch.context() as patched:
        patched.setattr(connection, "migrations", lambda: newest[:1])
        old = await open_sqlite(path)
        await open_wallet(old, a_grant(amount=1_000))
        await old.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
        raw.execute("INSERT INTO keys VALUES ('key-1', ?, 'auth-1', ?, NULL)", (b"h" * 32, NOW_US))
        raw.execute("INSERT INTO keys VALUES ('key-2', ?, 'auth-1', ?, ?)", (b"i" * 32, NOW_US, NOW_US + 1))
    upgraded = await open_sqlite(path)
    assert (await found(upgraded)).key == a_key(prefix="")
    assert (await found(upgraded, b"i" * 32)).key.revoke_time_us == NOW_US + 1
    await upgraded.record_key_uses({"key-1": NOW_US + 5})
    assert (await found(upgraded)).key.last_used_time_us == NOW_US + 5
    assert (await upgraded.balance("alice", None, NOW_US)).available_microcredits == 1_000
    assert await differences(upgraded) == []
    await upgraded.close()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(newest),)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_store_of_a_newer_version_is_not_touched_by_an_older_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    await (await open_sqlite(path)).close()
    content = path.read_bytes()
    newest = connection.migrations()
    monkeypatch.setattr(connection, "migrations", lambda: newest[:1])
    with pytest.raises(Exception, match="its version 2 is newer than this program's 1"):
        await open_sqlite(path)
    assert path.read_bytes() == content

"""What every LedgerStore promises of keys."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import CARD, DAY_US, NOW_US, a_consent, a_key, a_wallet, differences, open_wallet

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


# A store as version 1 wrote it: alice with a grant, a key, a revoked key, and a charge that recovery made.
OF_VERSION_1 = f"""
    INSERT INTO meta VALUES (1, zeroblob(32), {NOW_US});
    INSERT INTO owners VALUES ('gateway-1', 1, {NOW_US}, {NOW_US});
    INSERT INTO wallets VALUES ('alice', 'ACTIVE', 2, {NOW_US});
    INSERT INTO grants VALUES (1, 'grant-1', 'alice', 'TOP_UP', 100, 1000, 980, {NOW_US}, NULL, {NOW_US});
    INSERT INTO authorizations VALUES ('auth-1', 'alice', 'notes', 'APP', NULL, '[]', 20, 0, {NOW_US}, NULL);
    INSERT INTO keys VALUES ('key-1', CAST('{"h" * 32}' AS BLOB), 'auth-1', {NOW_US}, NULL);
    INSERT INTO keys VALUES ('key-2', CAST('{"i" * 32}' AS BLOB), 'auth-1', {NOW_US}, {NOW_US + 1});
    INSERT INTO reservations VALUES (
        'res-1', 'alice', 'auth-1', 'notes', 'APP', 'request-1', x'00', 'gateway-1', 1, 'model-1', 'provider-1',
        'TOKENIZER', 'card-1', 1000, 'SETTLED', 'CRASH', 30, 20, '[["PROMPT",20]]', 12, '[]', {NOW_US}, {NOW_US}
    );
    INSERT INTO charges VALUES (
        1, 'charge-1', 'res-1', 'alice', 'auth-1', 'notes', 'APP', 'request-1', x'00', 'model-1', 'provider-1', '[]',
        'TOKENIZER', '[["PROMPT",20]]', NULL, 0, 'card-1', 20, 20, 'INTERRUPTED', 'CRASH', {NOW_US}, {NOW_US}
    );
    INSERT INTO transfers VALUES ('alice', 1, 'GRANT', 'payments', 'grant:grant-1', 1000, 'grant-1', '', {NOW_US});
    INSERT INTO transfers VALUES
        ('alice', 2, 'CHARGE', 'grant:grant-1', 'revenue', 20, 'grant-1', 'charge-1', {NOW_US});
"""


async def test_a_store_of_version_1_is_upgraded_with_all_its_data(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    newest = connection.migrations()
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(f"PRAGMA journal_mode = WAL; {newest[0]} {OF_VERSION_1}")
        raw.executescript(f"PRAGMA application_id = {connection.APPLICATION_ID}; PRAGMA user_version = 1;")
    upgraded = await open_sqlite(path)
    await upgraded.add_rate_cards([CARD])
    assert (await found(upgraded)).key == a_key(prefix="")
    assert (await found(upgraded, b"i" * 32)).key.revoke_time_us == NOW_US + 1
    await upgraded.record_key_uses({"key-1": NOW_US + 5})
    assert (await found(upgraded)).key.last_used_time_us == NOW_US + 5
    assert (await upgraded.balance("alice", None, NOW_US)).available_microcredits == 980
    assert (await upgraded.get_charge("alice", "charge-1")).delivered_microcredits == 12
    balances = {name: row.balance_microcredits for name, row in (await upgraded.account_balances()).items()}
    assert balances == {"payments": -1_000, "grants": 980, "revenue": 20}
    assert await differences(upgraded) == []
    await upgraded.close()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(newest),)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)

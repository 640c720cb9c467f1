"""What every LedgerStore promises of keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import (
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_key,
    a_settle,
    a_wallet,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.errors import AuthorizationRevoked, RequestInvalid, ResourceNotFound
from metergate.core.reservation import CloseCause
from metergate.core.times import TIME_US_MAX
from metergate.ports import Grantee, LedgerStore
from metergate.stores.sqlite import SqliteLedgerStore


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


async def test_a_revoked_authorization_keeps_its_first_time_and_takes_no_new_key(store: LedgerStore) -> None:
    await store.add_key(a_key())
    assert await store.revoke_authorization("auth-1", NOW_US + 1) == NOW_US + 1
    assert await store.revoke_authorization("auth-1", NOW_US + 2) == NOW_US + 1
    assert (await found(store)).authorization.revoke_time_us == NOW_US + 1
    assert (await found(store)).key.revoke_time_us is None
    assert await store.add_key(a_key()) == a_key(), "it was recorded before"
    with pytest.raises(AuthorizationRevoked):
        await store.add_key(a_key("key-2", secret_hash=b"2" * 32))
    with pytest.raises(ResourceNotFound, match="authorizations/unknown"):
        await store.revoke_authorization("unknown", NOW_US)


async def test_a_request_that_runs_keeps_what_it_had_set_aside_when_its_authorization_is_revoked(
    store: LedgerStore,
) -> None:
    await store.add_grant(a_grant())
    await store.add_authorization(a_consent("auth-2"))
    await reserve(store)
    await store.revoke_authorization("auth-1", NOW_US)
    within = await store.capture(a_capture(100, owner=store.owner, wanted_microcredits=200))
    assert (within.captured_microcredits, within.reserved_microcredits) == (100, 100)
    assert within.refusal is CloseCause.CAP_REACHED
    beyond = await store.capture(a_capture(101, owner=store.owner))
    assert (beyond.captured_microcredits, beyond.refusal) == (100, CloseCause.CAP_REACHED)
    settled = await store.settle(a_settle(100, owner=store.owner))
    assert settled.charge is not None
    assert settled.spendable_microcredits == 0
    with pytest.raises(AuthorizationRevoked):
        await reserve(store, "res-2")
    await reserve(store, "res-3", authorization_id="auth-2")
    assert await differences(store) == []


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

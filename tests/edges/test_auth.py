import asyncio
from dataclasses import replace

import pytest
from edge_harness import APP_KEY, OWN_KEY, Clockwork, add_key, bearer, key_of
from fakes import FakeClock, MemoryLedgerStore

from metergate.core.errors import AuthorizationRevoked, Unauthenticated
from metergate.core.keys import hash_key
from metergate.edges.auth import CACHE_KEYS_MAX, CACHE_SECONDS, Authenticator
from metergate.ports import Grantee

UNKNOWN_KEY = key_of(99)


class CountingStore(MemoryLedgerStore):
    """Counts look-ups, and can revoke during one."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        self.lookups += 1
        return await super().find_grantee(secret_hash)


@pytest.fixture
async def store() -> CountingStore:
    store = CountingStore()
    await add_key(store, APP_KEY, "zhang", "workbuddy")
    await add_key(store, OWN_KEY, "zhang", "")
    return store


async def test_a_key_stands_for_its_authorization(store: CountingStore) -> None:
    authorization = await Authenticator(store, Clockwork(), FakeClock()).authenticate(bearer(APP_KEY))
    assert (authorization.subscriber_id, authorization.app_id) == ("zhang", "workbuddy")


async def test_the_scheme_is_read_in_any_case(store: CountingStore) -> None:
    metadata = [("user-agent", "x"), ("authorization", f"bEARER {APP_KEY}")]
    assert (await Authenticator(store, Clockwork(), FakeClock()).authenticate(metadata)).app_id == "workbuddy"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ([], "the metadata has no authorization"),
        ([("authorization", "")], "the authorization's scheme is not Bearer"),
        ([("authorization", f"Basic {APP_KEY}")], "the authorization's scheme is not Bearer"),
        ([("authorization", APP_KEY)], "the authorization's scheme is not Bearer"),
        ([("authorization", "Bearer ")], "the key is malformed"),
        ([("authorization", f"Bearer {APP_KEY} ")], "the key is malformed"),
        ([("authorization", f"Bearer {APP_KEY[:-1]}")], "the key is malformed"),
        ([("authorization", f"Bearer {UNKNOWN_KEY}")], "the key is unknown"),
        ([("authorization", f"Bearer {APP_KEY}")] * 2, "the metadata has more than one authorization"),
    ],
)
async def test_what_is_no_valid_key_is_refused_without_an_echo(
    store: CountingStore, metadata: list[tuple[str, str | bytes]], problem: str
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await Authenticator(store, Clockwork(), FakeClock()).authenticate(metadata)
    assert caught.value.problem == problem
    assert "mg_" not in str(caught.value)


async def test_a_key_is_looked_up_once_in_two_seconds(store: CountingStore) -> None:
    monotonic = Clockwork()
    authenticator = Authenticator(store, monotonic, FakeClock())
    for monotonic.now_seconds in (0.0, 1.0, 1.9):
        await authenticator.authenticate(bearer(APP_KEY))
    assert store.lookups == 1
    monotonic.now_seconds = CACHE_SECONDS
    await authenticator.authenticate(bearer(APP_KEY))
    assert store.lookups == 2


async def test_a_revoked_key_is_refused_within_two_seconds(store: CountingStore) -> None:
    monotonic = Clockwork()
    authenticator = Authenticator(store, monotonic, FakeClock())
    await authenticator.authenticate(bearer(APP_KEY))
    await store.revoke_key("zhang-workbuddy", 5)
    monotonic.now_seconds = 2.0
    with pytest.raises(AuthorizationRevoked):
        await authenticator.authenticate(bearer(APP_KEY))
    assert (await authenticator.authenticate(bearer(OWN_KEY))).app_id == ""


async def test_the_two_seconds_begin_before_the_look_up(store: CountingStore) -> None:
    monotonic = Clockwork()

    class SlowStore(CountingStore):
        async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
            grantee = await store.find_grantee(secret_hash)
            monotonic.now_seconds += 1.5
            return grantee

    authenticator = Authenticator(SlowStore(), monotonic, FakeClock())
    await authenticator.authenticate(bearer(APP_KEY))
    await store.revoke_key("zhang-workbuddy", 5)
    monotonic.now_seconds = 2.0
    with pytest.raises(AuthorizationRevoked):
        await authenticator.authenticate(bearer(APP_KEY))


async def test_a_key_works_from_the_moment_it_was_issued(store: CountingStore) -> None:
    authenticator = Authenticator(store, Clockwork(), FakeClock())
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(bearer(UNKNOWN_KEY))
    await add_key(store, UNKNOWN_KEY, "li", "")
    assert (await authenticator.authenticate(bearer(UNKNOWN_KEY))).subscriber_id == "li"


async def test_what_is_remembered_is_bounded(store: CountingStore) -> None:
    grantee = await store.find_grantee(hash_key(APP_KEY))

    class GenerousStore(CountingStore):
        async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
            return grantee

    authenticator = Authenticator(GenerousStore(), Clockwork(), FakeClock())
    for number in range(CACHE_KEYS_MAX + 10):
        await authenticator.authenticate([("authorization", f"Bearer mg_{number:043d}")])
    assert len(authenticator._known) == CACHE_KEYS_MAX


async def test_many_calls_at_once_with_one_key_all_succeed(store: CountingStore) -> None:
    authenticator = Authenticator(store, Clockwork(), FakeClock())
    callers = await asyncio.gather(*(authenticator.authenticate(bearer(APP_KEY)) for _ in range(20)))
    assert {caller.app_id for caller in callers} == {"workbuddy"}


async def test_an_expired_key_is_refused_at_once_and_says_so(store: CountingStore) -> None:
    clock = FakeClock()
    expiring = key_of(50)
    await add_key(store, expiring, "wang", "", expire_time_us=clock.now_us() + 10)
    authenticator = Authenticator(store, Clockwork(), clock)
    clock.advance(9)
    await authenticator.authenticate(bearer(expiring))
    clock.advance(1)
    with pytest.raises(Unauthenticated) as caught:
        await authenticator.authenticate(bearer(expiring))
    assert caught.value.problem == "the key has expired"
    assert store.lookups == 1


async def test_a_key_that_is_forgotten_is_looked_up_anew(store: CountingStore) -> None:
    authenticator = Authenticator(store, Clockwork(), FakeClock())
    for key in (APP_KEY, OWN_KEY):
        await authenticator.authenticate(bearer(key))
    await store.revoke_key("zhang-workbuddy", 5)
    authenticator.forget("zhang-workbuddy")
    with pytest.raises(AuthorizationRevoked):
        await authenticator.authenticate(bearer(APP_KEY))
    await authenticator.authenticate(bearer(OWN_KEY))
    assert store.lookups == 3


async def test_every_key_of_a_forgotten_authorization_is_looked_up_anew(store: CountingStore) -> None:
    another = key_of(7)
    first = await store.find_grantee(hash_key(APP_KEY))
    assert first is not None
    await store.add_key(replace(first.key, key_id="another", secret_hash=hash_key(another)))
    authenticator = Authenticator(store, Clockwork(), FakeClock())
    for key in (APP_KEY, another, OWN_KEY):
        await authenticator.authenticate(bearer(key))
    await store.revoke_authorization("zhang-workbuddy", 5)
    authenticator.forget_authorization("zhang-workbuddy")
    before = store.lookups
    for key in (APP_KEY, another):
        with pytest.raises(AuthorizationRevoked):
            await authenticator.authenticate(bearer(key))
    await authenticator.authenticate(bearer(OWN_KEY))
    assert store.lookups == before + 2


async def test_a_look_up_that_was_under_way_when_its_key_was_revoked_is_not_remembered(store: CountingStore) -> None:
    found, go_on = asyncio.Event(), asyncio.Event()

    class SlowStore(CountingStore):
        async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
            grantee = await store.find_grantee(secret_hash)
            found.set()
            await go_on.wait()
            return grantee

    authenticator = Authenticator(SlowStore(), Clockwork(), FakeClock())
    under_way = asyncio.create_task(authenticator.authenticate(bearer(APP_KEY)))
    await found.wait()
    await store.revoke_key("zhang-workbuddy", 5)
    authenticator.forget("zhang-workbuddy")
    go_on.set()
    await under_way
    with pytest.raises(AuthorizationRevoked):
        await authenticator.authenticate(bearer(APP_KEY))


async def test_only_keys_that_opened_something_were_used(store: CountingStore) -> None:
    used: list[str] = []
    authenticator = Authenticator(store, Clockwork(), FakeClock(), used.append)
    await authenticator.authenticate(bearer(APP_KEY))
    await authenticator.authenticate(bearer(APP_KEY))
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(bearer(UNKNOWN_KEY))
    await store.revoke_key("zhang-own", 5)
    with pytest.raises(AuthorizationRevoked):
        await authenticator.authenticate(bearer(OWN_KEY))
    assert used == ["zhang-workbuddy", "zhang-workbuddy"]


async def test_of_a_subscriber_that_was_erased_nothing_is_remembered(store: CountingStore) -> None:
    authenticator = Authenticator(store, Clockwork(), FakeClock())
    for key in (APP_KEY, OWN_KEY):
        await authenticator.authenticate(bearer(key))
    authenticator.forget_subscriber("zhang")
    assert not authenticator._known

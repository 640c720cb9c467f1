"""AdminService on its socket: what it takes, what it refuses, and who may open it."""

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge_harness import Refusal, refused
from fakes import MemoryLedgerStore
from google.protobuf.timestamp_pb2 import Timestamp

from metergate.core.errors import ListenerRefused
from metergate.core.keys import hash_key
from metergate.edges.admin import AdminServicer
from metergate.edges.admin_socket import (
    PATH_BYTES_MAX,
    admin_socket_path,
    admin_target,
    remove_admin_socket,
    start_admin_server,
)
from metergate.v1 import account_pb2, admin_pb2, admin_pb2_grpc

HASH = hashlib.sha256(b"a key").digest()
BAD_ID = "a b"


@dataclass
class Admin:
    """The service on its socket, and what stands behind it."""

    stub: "admin_pb2_grpc.AdminServiceAsyncStub"
    store: MemoryLedgerStore
    path: Path
    forgotten: list[str] = field(default_factory=list)
    forgotten_consents: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Admin]:
    store, forgotten, consents, erased = MemoryLedgerStore(), list[str](), list[str](), list[str]()
    servicer = AdminServicer(store, store.clock, forgotten.append, consents.append, erased.append)
    server = await start_admin_server(path, servicer)
    async with grpc.aio.insecure_channel(admin_target(path)) as channel:
        yield Admin(admin_pb2_grpc.AdminServiceStub(channel), store, path, forgotten, consents, erased)
    await server.stop(None)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with serving(tmp_path / "ledger.db.admin") as running:
        yield running


def servicer_of(store: MemoryLedgerStore) -> AdminServicer:
    return AdminServicer(store, store.clock, *(list[str]().append for _ in range(3)))


def a_grant(**values: Any) -> admin_pb2.CreateGrantRequest:
    defaults: dict[str, Any] = {
        "parent": "subscribers/zhang",
        "grant_id": "june",
        "source": account_pb2.GRANT_SOURCE_TOP_UP,
        "amount_microcredits": 5,
        "effective_time": Timestamp(seconds=1),
    }
    return admin_pb2.CreateGrantRequest(**(defaults | values))


def a_consent(**values: Any) -> admin_pb2.CreateAuthorizationRequest:
    defaults: dict[str, Any] = {
        "parent": "subscribers/zhang",
        "authorization_id": "auth-1",
        "app": "apps/notes",
        "channel": account_pb2.CHANNEL_CLOUD_PC,
        "models": ["models/b", "models/a"],
    }
    return admin_pb2.CreateAuthorizationRequest(**(defaults | values))


def a_key(**values: Any) -> admin_pb2.CreateKeyRequest:
    defaults: dict[str, Any] = {
        "authorization": "authorizations/auth-1",
        "key_id": "key-1",
        "secret_hash": HASH,
        "prefix": "mg_abcdef",
    }
    return admin_pb2.CreateKeyRequest(**(defaults | values))


async def set_up(admin: Admin) -> None:
    await admin.stub.CreateSubscriber(admin_pb2.CreateSubscriberRequest(subscriber_id="zhang"))
    await admin.stub.CreateAuthorization(a_consent())


async def test_a_subscriber_with_credit_a_consent_and_a_key_is_set_up(admin: Admin) -> None:
    created = await admin.stub.CreateSubscriber(admin_pb2.CreateSubscriberRequest(subscriber_id="zhang"))
    assert created.name == "subscribers/zhang"
    grant = (await admin.stub.CreateGrant(a_grant())).grant
    assert (grant.name, grant.remaining_microcredits) == ("subscribers/zhang/grants/june", 5)
    consent = await admin.stub.CreateAuthorization(a_consent(cap_microcredits=0))
    assert consent.name == "authorizations/auth-1"
    expiry = Timestamp(seconds=admin.store.clock.now_us() // 1_000_000 + 5)
    key = (await admin.stub.CreateKey(a_key(expire_time=expiry))).key
    assert (key.name, key.prefix, key.expire_time) == ("keys/key-1", "mg_abcdef", expiry)
    grantee = await admin.store.find_grantee(HASH)
    assert grantee is not None
    assert grantee.authorization.allowed_models == ("a", "b")
    assert grantee.authorization.cap_microcredits == 0
    assert (grantee.authorization.app_id, grantee.authorization.channel) == ("notes", "CLOUD_PC")


async def test_a_grant_that_rolls_over_says_by_what_rule(admin: Admin) -> None:
    await set_up(admin)
    request = a_grant(expire_time=Timestamp(seconds=5), rollover_microcredits_max=3, rollover_seconds=60)
    grant = (await admin.stub.CreateGrant(request)).grant
    assert (grant.rollover_microcredits_max, grant.rollover_seconds) == (3, 60)
    refusal = await refused(admin.stub.CreateGrant(a_grant(expire_time=Timestamp(seconds=5))))
    assert refusal.reason == "ID_CONFLICT", "the rule is part of the content"


async def test_everything_may_be_asked_again_and_other_content_is_a_conflict(admin: Admin) -> None:
    for _ in range(2):
        await set_up(admin)
        await admin.stub.CreateGrant(a_grant())
        await admin.stub.CreateKey(a_key())
        admin.store.clock.advance(1_000_000)
    balance = await admin.store.balance("zhang", None, admin.store.clock.now_us())
    assert balance.available_microcredits == 5
    for call in (
        admin.stub.CreateGrant(a_grant(amount_microcredits=6)),
        admin.stub.CreateAuthorization(a_consent(app="apps/other")),
        admin.stub.CreateKey(a_key(secret_hash=hash_key("another"))),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ID_CONFLICT")


async def test_a_revoked_key_is_forgotten_at_once_and_keeps_its_first_time(admin: Admin) -> None:
    await set_up(admin)
    await admin.stub.CreateKey(a_key())
    first = (await admin.stub.RevokeKey(admin_pb2.RevokeKeyRequest(name="keys/key-1"))).key
    assert first.HasField("revoke_time")
    assert admin.forgotten == ["key-1"]
    admin.store.clock.advance(1_000_000)
    again = (await admin.stub.RevokeKey(admin_pb2.RevokeKeyRequest(name="keys/key-1"))).key
    assert again.revoke_time == first.revoke_time


async def test_a_revoked_authorization_is_forgotten_at_once_and_keeps_its_first_time(admin: Admin) -> None:
    await set_up(admin)
    await admin.stub.CreateKey(a_key())
    request = admin_pb2.RevokeAuthorizationRequest(name="authorizations/auth-1")
    first = await admin.stub.RevokeAuthorization(request)
    assert (first.name, admin.forgotten_consents) == ("authorizations/auth-1", ["auth-1"])
    assert first.revoke_time.ToMicroseconds() == admin.store.clock.now_us()
    admin.store.clock.advance(1_000_000)
    assert await admin.stub.RevokeAuthorization(request) == first
    # What was asked before is answered as then; a new key could never be used.
    await admin.stub.CreateAuthorization(a_consent())
    await admin.stub.CreateKey(a_key())
    refusal = await refused(admin.stub.CreateKey(a_key(key_id="key-2", secret_hash=hash_key("another"))))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "AUTHORIZATION_REVOKED")


async def test_what_is_not_there_is_not_found(admin: Admin) -> None:
    for call in (
        admin.stub.CreateGrant(a_grant()),
        admin.stub.CreateAuthorization(a_consent()),
        admin.stub.CreateKey(a_key()),
        admin.stub.RevokeKey(admin_pb2.RevokeKeyRequest(name="keys/key-1")),
        admin.stub.RevokeAuthorization(admin_pb2.RevokeAuthorizationRequest(name="authorizations/auth-1")),
    ):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND
    assert admin.forgotten == admin.forgotten_consents == []


def fields(refusal: Refusal) -> set[str]:
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    return set(refusal.violations)


async def test_wrong_fields_are_told_by_name(admin: Admin) -> None:
    await set_up(admin)
    assert fields(await refused(admin.stub.CreateSubscriber(admin_pb2.CreateSubscriberRequest()))) == {"subscriber_id"}
    assert fields(await refused(admin.stub.CreateGrant(admin_pb2.CreateGrantRequest()))) == {
        "parent",
        "grant_id",
        "source",
        "effective_time",
    }
    assert fields(await refused(admin.stub.CreateGrant(a_grant(amount_microcredits=-1)))) == {"amount_microcredits"}
    assert fields(await refused(admin.stub.CreateGrant(a_grant(priority=1_001)))) == {"priority"}
    assert fields(await refused(admin.stub.CreateGrant(a_grant(expire_time=Timestamp(seconds=1))))) == {"expire_time"}
    rule = {"expire_time": Timestamp(seconds=5), "rollover_microcredits_max": 1}
    assert fields(await refused(admin.stub.CreateGrant(a_grant(**rule)))) == {"rollover_seconds"}
    assert fields(await refused(admin.stub.CreateGrant(a_grant(rollover_seconds=-1)))) == {"rollover_microcredits_max"}
    wrong = a_consent(authorization_id=BAD_ID, app="notes", channel=9, models=["a", "models/" + BAD_ID])
    assert fields(await refused(admin.stub.CreateAuthorization(wrong))) == {
        "authorization_id",
        "app",
        "channel",
        "models[0]",
        "models[1]",
    }
    many = a_consent(models=[f"models/{number}" for number in range(101)])
    assert fields(await refused(admin.stub.CreateAuthorization(many))) == {"models"}
    wrong_key = a_key(key_id="", secret_hash=b"short", authorization="auth-1")
    assert fields(await refused(admin.stub.CreateKey(wrong_key))) == {"key_id", "secret_hash", "authorization"}
    assert fields(await refused(admin.stub.CreateKey(a_key(expire_time=Timestamp(seconds=1))))) == {"expire_time"}
    assert fields(await refused(admin.stub.CreateKey(a_key(prefix="mg_" + "x" * 43)))) == {"prefix"}
    assert fields(await refused(admin.stub.RevokeKey(admin_pb2.RevokeKeyRequest(name="key-1")))) == {"name"}


async def test_only_its_own_user_may_open_the_socket(admin: Admin) -> None:
    assert admin.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a b", "100%", "%41", "数据", "a?b#c", "'"])
async def test_any_name_of_a_store_is_a_name_of_a_socket(tmp_path: Path, name: str) -> None:
    path = admin_socket_path(tmp_path / name)
    async with serving(path) as running:
        assert path.is_socket()
        await running.stub.CreateSubscriber(admin_pb2.CreateSubscriberRequest(subscriber_id="zhang"))


async def test_the_socket_of_a_store_is_the_same_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "ledger.db")
    assert admin_socket_path(tmp_path / "link.db") == admin_socket_path(tmp_path / "ledger.db")


async def test_a_dead_gateways_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db.admin"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path) as running:
        await running.stub.CreateSubscriber(admin_pb2.CreateSubscriberRequest(subscriber_id="zhang"))
    remove_admin_socket(path)
    assert not path.exists()
    remove_admin_socket(path)


async def test_a_path_too_long_for_a_socket_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / ("x" * PATH_BYTES_MAX)
    with pytest.raises(ListenerRefused, match="move the store to a shorter one"):
        await start_admin_server(path, servicer_of(MemoryLedgerStore()))


@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_what_is_no_socket_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger.db.admin"
    path.write_text("mine") if kind == "file" else path.mkdir()
    store = MemoryLedgerStore()
    with pytest.raises(ListenerRefused):
        await start_admin_server(path, servicer_of(store))
    assert path.exists()


# --- forgetting -----------------------------------------------------------------------------------------------------


def an_erasure(**values: Any) -> admin_pb2.EraseSubscriberRequest:
    defaults: dict[str, Any] = {"name": "subscribers/zhang", "reason": "asked to be forgotten", "actor": "ops"}
    return admin_pb2.EraseSubscriberRequest(**(defaults | values))


async def test_a_forgotten_subscriber_is_found_under_its_pseudonym_only_and_the_caches_are_told(admin: Admin) -> None:
    await set_up(admin)
    await admin.stub.CreateKey(a_key())
    response = await admin.stub.EraseSubscriber(an_erasure())
    pseudonym = response.name.removeprefix("subscribers/")
    assert admin.erased == ["zhang"]
    assert admin.store.erasures[pseudonym].reason == "asked to be forgotten"
    assert response.erase_time.ToMicroseconds() == admin.store.clock.now_us()
    assert await admin.store.find_grantee(HASH) is None
    refusal = await refused(admin.stub.EraseSubscriber(an_erasure()))
    assert refusal.reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize(
    ("values", "field"),
    [({"name": "zhang"}, "name"), ({"reason": "for zhang"}, "reason"), ({"actor": ""}, "actor")],
)
async def test_an_erasure_that_would_keep_the_id_or_says_not_why_is_refused(
    admin: Admin, values: dict[str, str], field: str
) -> None:
    await set_up(admin)
    refusal = await refused(admin.stub.EraseSubscriber(an_erasure(**values)))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.violations
    assert admin.store.erasures == {}

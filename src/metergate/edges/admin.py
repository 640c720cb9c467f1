"""AdminService: what operators do to the ledger of a gateway that serves. Who may call it, its socket decides."""

import secrets
from collections.abc import Callable, Mapping

from google.protobuf.descriptor import ServiceDescriptor

from metergate.core.erasing import PSEUDONYM_BYTES, subscriber_pseudonym
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber, EraseSubscriber
from metergate.core.rows import ApiKey, Authorization, Channel, Grant, GrantSource, Wallet, WalletState
from metergate.edges.account import CHANNELS, GRANT_SOURCES, grant_message
from metergate.edges.calls import Behaviour, Context
from metergate.edges.corrections import Corrections
from metergate.edges.pages import read_time_us
from metergate.edges.reading import read_id, read_name
from metergate.edges.resources import (
    authorization_name,
    key_name,
    parse_app,
    parse_authorization,
    parse_key,
    parse_model,
    parse_subscriber,
    subscriber_name,
)
from metergate.edges.responses import timestamp
from metergate.edges.violations import Violations
from metergate.ports import Clock, LedgerStore
from metergate.v1 import admin_pb2

# What the protos promise.
MODELS_MAX = 100
PRIORITY_MAX = 1_000
SECRET_HASH_BYTES = 32

_SOURCES = {number: source for source, number in GRANT_SOURCES.items()}
_CHANNELS = {number: channel for channel, number in CHANNELS.items()}


class AdminServicer:
    """Writes to the ledger.

    ``forget`` is told the id of every key that was revoked, ``forget_authorization`` that of every authorization that
    was, ``forget_subscriber`` that of every subscriber that was erased; none may raise.
    """

    service: ServiceDescriptor = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]

    def __init__(
        self,
        store: LedgerStore,
        clock: Clock,
        forget: Callable[[str], None],
        forget_authorization: Callable[[str], None],
        forget_subscriber: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._forget = forget
        self._forget_authorization = forget_authorization
        self._forget_subscriber = forget_subscriber
        self._corrections = Corrections(store, clock)

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does."""
        return {
            "CreateSubscriber": self._create_subscriber,
            "CreateGrant": self._create_grant,
            "CreateAuthorization": self._create_authorization,
            "CreateKey": self._create_key,
            "RevokeKey": self._revoke_key,
            "RevokeAuthorization": self._revoke_authorization,
            "EraseSubscriber": self._erase_subscriber,
            **self._corrections.behaviours(),
        }

    async def _create_subscriber(
        self, caller: object, request: admin_pb2.CreateSubscriberRequest, context: Context
    ) -> admin_pb2.CreateSubscriberResponse:
        violations = Violations()
        subscriber_id = read_id(request.subscriber_id, "subscriber_id", violations)
        violations.check()
        wallet = Wallet(
            subscriber_id=subscriber_id, state=WalletState.ACTIVE, sequence=0, create_time_us=self._clock.now_us()
        )
        await self._store.add_subscriber(AddSubscriber(wallet=wallet))
        return admin_pb2.CreateSubscriberResponse(name=subscriber_name(subscriber_id))

    async def _erase_subscriber(
        self, caller: object, request: admin_pb2.EraseSubscriberRequest, context: Context
    ) -> admin_pb2.EraseSubscriberResponse:
        violations = Violations()
        form = "subscribers/{subscriber}"
        subscriber_id = read_name(parse_subscriber, request.name, "name", form, violations)
        violations.check()
        operation = EraseSubscriber(
            subscriber_id=subscriber_id,
            pseudonym=subscriber_pseudonym(secrets.token_bytes(PSEUDONYM_BYTES)),
            reason=request.reason,
            actor=request.actor,
            now_us=self._clock.now_us(),
        )
        try:
            erasure = await self._store.erase_subscriber(operation)
        finally:  # done, or perhaps done
            self._forget_subscriber(subscriber_id)
        return admin_pb2.EraseSubscriberResponse(
            name=subscriber_name(erasure.subscriber_id),
            erase_time=timestamp(erasure.erase_time_us),
            leaves_copies=erasure.leaves_copies,
        )

    async def _create_grant(
        self, caller: object, request: admin_pb2.CreateGrantRequest, context: Context
    ) -> admin_pb2.CreateGrantResponse:
        grant = _read_grant(request, self._clock.now_us())
        return admin_pb2.CreateGrantResponse(grant=grant_message(await self._store.add_grant(AddGrant(grant=grant))))

    async def _create_authorization(
        self, caller: object, request: admin_pb2.CreateAuthorizationRequest, context: Context
    ) -> admin_pb2.CreateAuthorizationResponse:
        authorization = _read_authorization(request, self._clock.now_us())
        await self._store.add_authorization(AddAuthorization(authorization=authorization))
        return admin_pb2.CreateAuthorizationResponse(name=authorization_name(authorization.authorization_id))

    async def _create_key(
        self, caller: object, request: admin_pb2.CreateKeyRequest, context: Context
    ) -> admin_pb2.CreateKeyResponse:
        key = _read_key(request, self._clock.now_us())
        return admin_pb2.CreateKeyResponse(key=_key_message(await self._store.add_key(key)))

    async def _revoke_key(
        self, caller: object, request: admin_pb2.RevokeKeyRequest, context: Context
    ) -> admin_pb2.RevokeKeyResponse:
        violations = Violations()
        key_id = read_name(parse_key, request.name, "name", "keys/{key}", violations)
        violations.check()
        key = await self._store.revoke_key(key_id, self._clock.now_us())
        self._forget(key_id)
        return admin_pb2.RevokeKeyResponse(key=_key_message(key))

    async def _revoke_authorization(
        self, caller: object, request: admin_pb2.RevokeAuthorizationRequest, context: Context
    ) -> admin_pb2.RevokeAuthorizationResponse:
        violations = Violations()
        form = "authorizations/{authorization}"
        authorization_id = read_name(parse_authorization, request.name, "name", form, violations)
        violations.check()
        revoke_time_us = await self._store.revoke_authorization(authorization_id, self._clock.now_us())
        self._forget_authorization(authorization_id)
        return admin_pb2.RevokeAuthorizationResponse(
            name=authorization_name(authorization_id), revoke_time=timestamp(revoke_time_us)
        )


# --- from the wire --------------------------------------------------------------------------------------------------


def _read_grant(request: admin_pb2.CreateGrantRequest, now_us: int) -> Grant:
    violations = Violations()
    subscriber_id = read_name(parse_subscriber, request.parent, "parent", "subscribers/{subscriber}", violations)
    grant_id = read_id(request.grant_id, "grant_id", violations)
    source = _SOURCES.get(request.source)
    if source is None:
        violations.add("source", "must be one of GrantSource")
    if not 0 <= request.priority <= PRIORITY_MAX:
        violations.add("priority", f"must be from 0 to {PRIORITY_MAX}")
    if not request.HasField("effective_time"):
        violations.add("effective_time", "is missing")
    effective_time_us = read_time_us(request.effective_time, "effective_time", violations)
    expire_time_us = None
    if request.HasField("expire_time"):
        expire_time_us = read_time_us(request.expire_time, "expire_time", violations)
    violations.check()
    return Grant(
        grant_id=grant_id,
        subscriber_id=subscriber_id,
        source=source or GrantSource.TOP_UP,
        priority=request.priority,
        amount_microcredits=request.amount_microcredits,
        remaining_microcredits=request.amount_microcredits,
        effective_time_us=effective_time_us,
        expire_time_us=expire_time_us,
        create_time_us=now_us,
        rollover_microcredits_max=request.rollover_microcredits_max,
        rollover_seconds=request.rollover_seconds,
    )


def _read_authorization(request: admin_pb2.CreateAuthorizationRequest, now_us: int) -> Authorization:
    violations = Violations()
    subscriber_id = read_name(parse_subscriber, request.parent, "parent", "subscribers/{subscriber}", violations)
    authorization_id = read_id(request.authorization_id, "authorization_id", violations)
    app_id = read_name(parse_app, request.app, "app", "apps/{app}", violations) if request.app else ""
    channel = _CHANNELS.get(request.channel)
    if channel is None:
        violations.add("channel", "must be one of Channel")
    if len(request.models) > MODELS_MAX:
        violations.add("models", f"must be at most {MODELS_MAX}")
    models = {
        read_name(parse_model, name, f"models[{index}]", "models/{model}", violations)
        for index, name in enumerate(request.models[:MODELS_MAX])
    }
    violations.check()
    return Authorization(
        authorization_id=authorization_id,
        subscriber_id=subscriber_id,
        app_id=app_id,
        channel=channel or Channel.APP,
        cap_microcredits=request.cap_microcredits if request.HasField("cap_microcredits") else None,
        allowed_models=tuple(sorted(models)),
        charged_microcredits=0,
        reserved_microcredits=0,
        create_time_us=now_us,
        revoke_time_us=None,
    )


def _read_key(request: admin_pb2.CreateKeyRequest, now_us: int) -> ApiKey:
    violations = Violations()
    form = "authorizations/{authorization}"
    authorization_id = read_name(parse_authorization, request.authorization, "authorization", form, violations)
    key_id = read_id(request.key_id, "key_id", violations)
    if len(request.secret_hash) != SECRET_HASH_BYTES:
        violations.add("secret_hash", f"must have {SECRET_HASH_BYTES} bytes")
    expire_time_us = None
    if request.HasField("expire_time"):
        expire_time_us = read_time_us(request.expire_time, "expire_time", violations)
    violations.check()
    return ApiKey(
        key_id=key_id,
        secret_hash=request.secret_hash,
        authorization_id=authorization_id,
        create_time_us=now_us,
        revoke_time_us=None,
        prefix=request.prefix,
        expire_time_us=expire_time_us,
    )


# --- to the wire ----------------------------------------------------------------------------------------------------


def _key_message(key: ApiKey) -> admin_pb2.Key:
    return admin_pb2.Key(
        name=key_name(key.key_id),
        authorization=authorization_name(key.authorization_id),
        prefix=key.prefix,
        create_time=timestamp(key.create_time_us),
        expire_time=None if key.expire_time_us is None else timestamp(key.expire_time_us),
        last_used_time=None if key.last_used_time_us is None else timestamp(key.last_used_time_us),
        revoke_time=None if key.revoke_time_us is None else timestamp(key.revoke_time_us),
    )

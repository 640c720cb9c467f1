"""AdminService on the socket beside a store, as commands write through it to the gateway that serves the store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, cast

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from metergate.core.errors import CommandRefused
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    EraseSubscriber,
    Refund,
    Reverse,
    SetWalletState,
)
from metergate.core.rows import ApiKey, Authorization, Correction, Erasure, Grant, Wallet, WalletState
from metergate.edges.account import CHANNELS, GRANT_SOURCES
from metergate.edges.admin_socket import admin_target
from metergate.edges.corrections import CORRECTION_KINDS
from metergate.edges.resources import (
    app_name,
    authorization_name,
    charge_name,
    grant_name,
    key_name,
    model_name,
    subscriber_name,
    wallet_name,
)
from metergate.edges.responses import timestamp
from metergate.ports import Page
from metergate.v1 import admin_pb2, admin_pb2_grpc

# A gateway under load answers in milliseconds; one that is stuck must not hold a person's terminal for ever.
CALL_SECONDS_MAX = 15.0

# A subscriber with a million charges is forgotten within minutes. Who does not wait for it asks again, and it goes on.
ERASING_SECONDS_MAX = 3_600.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class GrantReader(Protocol):
    """What AdminService has no method for: who writes through it can read the store."""

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        ...


class ServingGateway:
    """A ledger that a gateway writes. What the gateway refuses is CommandRefused."""

    def __init__(self, stub: "admin_pb2_grpc.AdminServiceAsyncStub", reader: GrantReader) -> None:
        self._stub = stub
        self._reader = reader

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        """Open a wallet."""
        request = admin_pb2.CreateSubscriberRequest(subscriber_id=operation.wallet.subscriber_id)
        await _answer(self._stub.CreateSubscriber, request)
        return operation.wallet

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        """Forget a subscriber, at the time of the gateway's own clock and under a pseudonym that it chose."""
        request = admin_pb2.EraseSubscriberRequest(
            name=subscriber_name(operation.subscriber_id), reason=operation.reason, actor=operation.actor
        )
        response = await _answer(self._stub.EraseSubscriber, request, ERASING_SECONDS_MAX)
        return Erasure(
            subscriber_id=response.name.removeprefix("subscribers/"),
            reason=operation.reason,
            actor=operation.actor,
            erase_time_us=_time_us(response.erase_time),
            leaves_copies=response.leaves_copies,
        )

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        grant = operation.grant
        request = admin_pb2.CreateGrantRequest(
            parent=subscriber_name(grant.subscriber_id),
            grant_id=grant.grant_id,
            source=GRANT_SOURCES[grant.source],
            priority=grant.priority,
            amount_microcredits=grant.amount_microcredits,
            effective_time=timestamp(grant.effective_time_us),
            expire_time=_timestamp(grant.expire_time_us),
            rollover_microcredits_max=grant.rollover_microcredits_max,
            rollover_seconds=grant.rollover_seconds,
        )
        await _answer(self._stub.CreateGrant, request)
        return grant  # the content of an earlier one of this id is the same, or it would have been refused

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        authorization = operation.authorization
        request = admin_pb2.CreateAuthorizationRequest(
            parent=subscriber_name(authorization.subscriber_id),
            authorization_id=authorization.authorization_id,
            app=app_name(authorization.app_id),
            channel=CHANNELS[authorization.channel],
            cap_microcredits=authorization.cap_microcredits,
            models=[model_name(model_id) for model_id in authorization.allowed_models],
        )
        await _answer(self._stub.CreateAuthorization, request)
        return authorization

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash."""
        request = admin_pb2.CreateKeyRequest(
            authorization=authorization_name(key.authorization_id),
            key_id=key.key_id,
            secret_hash=key.secret_hash,
            prefix=key.prefix,
            expire_time=_timestamp(key.expire_time_us),
        )
        await _answer(self._stub.CreateKey, request)
        return key

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key, at the time of the gateway's own clock."""
        request = admin_pb2.RevokeKeyRequest(name=key_name(key_id))
        response = await _answer(self._stub.RevokeKey, request)
        return _key(response.key)

    async def revoke_authorization(self, authorization_id: str, now_us: int) -> int:
        """Revoke an authorization with all its keys, at the time of the gateway's own clock."""
        request = admin_pb2.RevokeAuthorizationRequest(name=authorization_name(authorization_id))
        response = await _answer(self._stub.RevokeAuthorization, request)
        return _time_us(response.revoke_time)

    async def refund(self, operation: Refund) -> Correction:
        """Give back part of a charge."""
        request = admin_pb2.RefundChargeRequest(
            name=charge_name(operation.subscriber_id, operation.charge_id),
            amount_microcredits=operation.amount_microcredits,
            grant_seconds=operation.grant_seconds,
            **_asked(operation),
        )
        response = await _answer(self._stub.RefundCharge, request)
        return _correction(response.correction)

    async def adjust(self, operation: Adjust) -> Correction:
        """Give credit, or take what is available."""
        request = admin_pb2.AdjustWalletRequest(
            name=wallet_name(operation.subscriber_id),
            amount_microcredits=operation.amount_microcredits,
            grant_seconds=operation.grant_seconds,
            **_asked(operation),
        )
        response = await _answer(self._stub.AdjustWallet, request)
        return _correction(response.correction)

    async def reverse(self, operation: Reverse) -> Correction:
        """Take back a grant whose payment was taken back."""
        name = grant_name(operation.subscriber_id, operation.grant_id)
        request = admin_pb2.ReverseGrantRequest(name=name, **_asked(operation))
        response = await _answer(self._stub.ReverseGrant, request)
        return _correction(response.correction)

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        """Stop a wallet, or let it be spent from again."""
        name = wallet_name(operation.subscriber_id)
        if operation.state is WalletState.SUSPENDED:
            suspend = admin_pb2.SuspendWalletRequest(name=name, **_asked(operation))
            return _correction((await _answer(self._stub.SuspendWallet, suspend)).correction)
        resume = admin_pb2.ResumeWalletRequest(name=name, **_asked(operation))
        return _correction((await _answer(self._stub.ResumeWallet, resume)).correction)

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        return await self._reader.list_grants(subscriber_id, cursor=cursor, size=size)


@asynccontextmanager
async def serving_gateway(path: Path, reader: GrantReader) -> AsyncIterator[ServingGateway]:
    """The gateway that listens on this socket; ``reader`` reads the same store."""
    # The socket's file is no host: its name would be sent as one otherwise.
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(admin_target(path), options=options) as channel:
        yield ServingGateway(admin_pb2_grpc.AdminServiceStub(channel), reader)


async def _answer(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, seconds_max: float = CALL_SECONDS_MAX
) -> Response:
    try:
        return await method(request, timeout=seconds_max)
    except grpc.aio.AioRpcError as exc:
        status = rpc_status.from_call(cast(Any, exc))
        if status is None:
            problem = f"it did not answer ({exc.code().name}); look at its log, and try again"
            raise CommandRefused(problem=problem) from exc
        raise CommandRefused(problem=status.message.removesuffix(".")) from exc


def _timestamp(time_us: int | None) -> Timestamp | None:
    return None if time_us is None else timestamp(time_us)


def _time_us(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000 + moment.nanos // 1_000


class _Asked(TypedDict):
    """What every correction is asked for with, beside its resource's name."""

    correction_id: str
    reason: str
    actor: str


def _asked(operation: Refund | Adjust | Reverse | SetWalletState) -> _Asked:
    return {"correction_id": operation.correction_id, "reason": operation.reason, "actor": operation.actor}


def _correction(message: admin_pb2.Correction) -> Correction:
    _, subscriber_id, _, correction_id = message.name.split("/")
    kinds = {number: kind for kind, number in CORRECTION_KINDS.items()}
    return Correction(
        correction_id=correction_id,
        subscriber_id=subscriber_id,
        kind=kinds[message.kind],
        charge_id=message.charge.rpartition("/")[2],
        grant_id=message.grant.rpartition("/")[2],
        amount_microcredits=message.amount_microcredits,
        shortfall_microcredits=message.shortfall_microcredits,
        grant_seconds=message.grant_seconds if message.HasField("grant_seconds") else None,
        reason=message.reason,
        actor=message.actor,
        create_time_us=_time_us(message.create_time),
    )


def _key(message: admin_pb2.Key) -> ApiKey:
    return ApiKey(
        key_id=message.name.removeprefix("keys/"),
        secret_hash=b"",  # it never leaves the store
        authorization_id=message.authorization.removeprefix("authorizations/"),
        create_time_us=_time_us(message.create_time),
        revoke_time_us=_time_us(message.revoke_time) if message.HasField("revoke_time") else None,
        prefix=message.prefix,
        expire_time_us=_time_us(message.expire_time) if message.HasField("expire_time") else None,
        last_used_time_us=_time_us(message.last_used_time) if message.HasField("last_used_time") else None,
    )

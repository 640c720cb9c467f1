"""The BackendService adapter over TLS: it talks to a backend that proves who it is, and to no other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from backend_requests import a_request
from certificates import Authority
from grpc import aio

from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import Finish
from metergate.v1 import backend_pb2, backend_pb2_grpc, chat_pb2


class Servicer(backend_pb2_grpc.BackendServiceServicer):
    """Ends every answer at once, and keeps the keys that came."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    async def Generate(  # noqa: N802
        self, request: backend_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[backend_pb2.GenerateResponse]:
        self.keys.append(dict(context.invocation_metadata()).get("authorization"))
        yield backend_pb2.GenerateResponse(finish_reason=chat_pb2.FINISH_REASON_STOP)

    async def Embed(  # noqa: N802
        self, request: backend_pb2.BackendServiceEmbedRequest, context: Any
    ) -> backend_pb2.BackendServiceEmbedResponse:
        raise NotImplementedError

    async def GetModelInfo(  # noqa: N802
        self, request: backend_pb2.GetModelInfoRequest, context: Any
    ) -> backend_pb2.GetModelInfoResponse:
        raise NotImplementedError


@asynccontextmanager
async def serving(
    authority: Authority, *, clients: Authority | None = None, **options: Any
) -> AsyncIterator[tuple[Servicer, GrpcBackend]]:
    """A backend whose certificate is by this authority, and the adapter connected to it with a key.

    ``clients``: the backend only talks to those that this authority vouches for.
    """
    issued, servicer, server = authority.issue(), Servicer(), aio.server()
    backend_pb2_grpc.add_BackendServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, unused-ignore]
    credentials = grpc.ssl_server_credentials(
        [(issued.key, issued.certificate)],
        root_certificates=None if clients is None else clients.pem,
        require_client_auth=clients is not None,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    backend = GrpcBackend(
        GrpcBackendOptions(
            backend_id="b1",
            address=f"127.0.0.1:{port}",
            model_names={"smol": "smol"},
            api_key="sk-secret",
            connect_timeout_seconds=2.0,
            **options,
        )
    )
    try:
        yield servicer, backend
    finally:
        await backend.close()
        await server.stop(None)


async def test_a_backend_that_its_authority_vouches_for_gets_the_request_and_the_key() -> None:
    authority = Authority()
    async with serving(authority, tls=True, ca_pem=authority.pem) as (servicer, backend):
        assert any(isinstance(event, Finish) for event in [event async for event in backend.generate(a_request())])
        assert servicer.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize("options", [{"tls": True}, {"tls": True, "ca_pem": Authority("another").pem}, {}])
async def test_a_backend_that_nobody_trusted_vouches_for_gets_nothing(options: dict[str, Any]) -> None:
    async with serving(Authority(), **options) as (servicer, backend):
        with pytest.raises(BackendUnavailable):
            [event async for event in backend.generate(a_request())]
        assert servicer.keys == []


def own(authority: Authority) -> tuple[bytes, bytes]:
    """A key and its certificate, by this authority."""
    issued = authority.issue()
    return issued.key, issued.certificate


async def test_a_backend_that_asks_for_a_certificate_is_shown_one() -> None:
    authority, clients = Authority(), Authority("of gateways")
    async with serving(authority, clients=clients, tls=True, ca_pem=authority.pem, own_pem=own(clients)) as (
        servicer,
        backend,
    ):
        assert await backend.is_up()
        assert any(isinstance(event, Finish) for event in [event async for event in backend.generate(a_request())])
        assert servicer.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize("own_pem", [None, own(Authority("of nobody"))])
async def test_a_backend_that_asks_for_a_certificate_serves_nobody_without_a_right_one(
    own_pem: tuple[bytes, bytes] | None,
) -> None:
    authority = Authority()
    async with serving(
        authority, clients=Authority("of gateways"), tls=True, ca_pem=authority.pem, own_pem=own_pem
    ) as (servicer, backend):
        with pytest.raises(BackendUnavailable):
            [event async for event in backend.generate(a_request())]
        assert servicer.keys == []


def test_the_key_is_not_shown_with_the_options() -> None:
    options = GrpcBackendOptions(
        backend_id="b", address="a:1", model_names={}, connect_timeout_seconds=1.0, own_pem=(b"secret", b"certificate")
    )
    assert "secret" not in repr(options)

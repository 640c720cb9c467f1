"""Whether a backend is up, as readiness asks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ports import reserved_port
from scripted_http2 import scripted_http2_server

from metergate.backends import grpc as grpc_adapter
from metergate.backends import openai
from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that answers everything with these bytes, and then says nothing more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def openai_is_up(port: int, health_path: str | None = None, **options: Any) -> bool:
    backend = OpenAIBackend(
        OpenAIBackendOptions(
            backend_id="b",
            url=f"http://127.0.0.1:{port}/v1",
            model_names={},
            connect_timeout_seconds=2.0,
            health_path=health_path,
            **options,
        )
    )
    try:
        return await backend.is_up()
    finally:
        await backend.close()


@pytest.mark.parametrize(
    ("answer", "is_up"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", False),
        (b"", True),  # it is busy
    ],
)
async def test_an_http_backend_is_up_unless_it_fails_or_speaks_no_http(
    answer: bytes, is_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer is waited for, however slow this machine is.
    monkeypatch.setattr(openai, "_LOOK_SECONDS", 10.0 if answer else 0.1)
    async with answering(answer) as port:
        assert await openai_is_up(port) is is_up


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_an_http_backend_that_cannot_be_connected_to_is_down(http_version: str) -> None:
    with reserved_port() as port:
        assert await openai_is_up(port, http_version=http_version) is False


@pytest.mark.parametrize(
    ("status", "is_up"), [("200", True), ("404", True), ("503", False), (None, True)], ids=["200", "404", "503", "busy"]
)
async def test_an_http2_backend_is_up_unless_it_fails(
    status: str | None, is_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the others the answer is waited for, however slow this machine is.
    monkeypatch.setattr(openai, "_LOOK_SECONDS", 0.1 if status is None else 10.0)
    async with scripted_http2_server() as server:
        server.look_status = status
        assert await openai_is_up(server.port, http_version="2") is is_up
        assert server.looked_at == ["/v1/models"]


async def test_a_grpc_backend_is_up_while_it_can_be_connected_to() -> None:
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    backend = GrpcBackend(
        GrpcBackendOptions(backend_id="b", address=f"127.0.0.1:{port}", model_names={}, connect_timeout_seconds=2.0)
    )
    await server.start()
    try:
        assert await backend.is_up() is True
        await server.stop(None)
        async with asyncio.timeout(20):
            while await backend.is_up():
                await backend._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # until it has heard of it
    finally:
        await backend.close()


@pytest.mark.parametrize(
    ("health_path", "asked"), [(None, "/v1/models"), ("/health", "/health"), ("/a/b?c=d", "/a/b?c=d")]
)
async def test_an_http_backend_is_asked_at_the_path_it_was_set_up_with(health_path: str | None, asked: str) -> None:
    paths: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        assert await openai_is_up(server.sockets[0].getsockname()[1], health_path)
    assert paths == [asked]


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class SlowHealth(health_pb2_grpc.HealthServicer):
    """Takes its time."""

    async def Check(self, request: health_pb2.HealthCheckRequest, context: object) -> health_pb2.HealthCheckResponse:  # noqa: N802
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(("status", "is_up"), [(SERVING, True), (NOT_SERVING, False), (None, True)])
async def test_a_grpc_backend_that_says_that_it_does_not_serve_is_down(
    status: Any,  # None: it does not answer
    is_up: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is slow to say so is busy."""
    monkeypatch.setattr(grpc_adapter, "_LOOK_SECONDS", 0.1)
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    if status is None:
        health_pb2_grpc.add_HealthServicer_to_server(SlowHealth(), server)
    else:
        servicer = health.aio.HealthServicer()
        await servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    backend = GrpcBackend(
        GrpcBackendOptions(backend_id="b", address=f"127.0.0.1:{port}", model_names={}, connect_timeout_seconds=2.0)
    )
    await server.start()
    try:
        assert await backend.is_up() is is_up
    finally:
        await backend.close()
        await server.stop(None)

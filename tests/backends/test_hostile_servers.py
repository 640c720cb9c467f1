"""What is there may speak another HTTP, prove nothing, or send without end: a typed error, and little memory."""

import asyncio
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import either_http
import grpc
import pytest
from backend_requests import a_request
from certificates import Authority, Issued
from either_http import scripted_server
from grpc import aio
from scripted_backend import CLOSE, Step, head

from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import BackendEvent, Delta, Finish
from metergate.core.rows import FinishReason

SOON_SECONDS = 10.0
HUNDRED_MEGABYTES = 100 * 1024 * 1024

ANSWER = b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ANSWER_EVENTS = [Delta(content="hi"), Finish(reason=FinishReason.STOP)]


async def ask(url: str, **options: Any) -> list[BackendEvent]:
    values: dict[str, Any] = {
        "backend_id": "b1",
        "url": url,
        "model_names": {"smol": "smol"},
        "api_key": "sk-secret",
        "connect_timeout_seconds": 2.0,
        "http_version": either_http.http_version,
    }
    backend = OpenAIBackend(OpenAIBackendOptions(**(values | options)))
    try:
        async with asyncio.timeout(SOON_SECONDS):
            return [event async for event in backend.generate(a_request())]
    finally:
        await backend.close()


# --- another HTTP ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def http2_only(issued: Issued | None) -> AsyncIterator[int]:
    """A server that speaks HTTP/2 and nothing else: gRPC's."""
    server = aio.server()
    if issued is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(issued.key, issued.certificate)]))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_server_that_speaks_http2_only_is_an_unavailable_backend() -> None:
    async with http2_only(None) as port:
        with pytest.raises(BackendUnavailable) as raised:
            await ask(f"http://127.0.0.1:{port}/v1")
    assert raised.value.problem.startswith(("it sent something else than HTTP", "it closed the connection"))


async def test_over_tls_a_server_that_speaks_http2_only_is_an_unavailable_backend() -> None:
    authority = Authority()
    async with http2_only(authority.issue()) as port:
        with pytest.raises(BackendUnavailable) as raised:
            await ask(f"https://127.0.0.1:{port}/v1", ca_pem=authority.pem.decode())
    assert raised.value.problem.startswith(("TLS failed", "it sent something else", "it closed the connection"))


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + ANSWER,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER),
        CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in ANSWER) + b"0\r\n\r\n",
        CHUNKED + b"\r\n%x;name=value\r\n%s\r\n0\r\n\r\n" % (len(ANSWER), ANSWER),
        CHUNKED + b"Trailer: X-Took\r\n\r\n%x\r\n%s\r\n0\r\nX-Took: 3\r\n\r\n" % (len(ANSWER), ANSWER),
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" + head() + ANSWER,
        b"HTTP/1.1 100 Continue\r\n\r\n" + head() + ANSWER,
        b"HTTP/1.1 200\r\nCONTENT-TYPE:text/event-stream;charset=utf-8\r\nConnection: close\r\n\r\n" + ANSWER,
    ],
    ids=[
        "HTTP/1.0",
        "a length",
        "chunks of a byte",
        "chunk extensions",
        "trailers",
        "early hints",
        "continue",
        "no reason, odd headers",
    ],
)
async def test_every_form_of_an_http1_answer_is_read(answer: bytes) -> None:
    async with scripted_server(answer, CLOSE) as server:
        assert await ask(server.url) == ANSWER_EVENTS


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # the buffers on the way hold megabytes
async def test_a_server_that_reads_nothing_is_left_with_the_request_half_sent() -> None:
    """Slow-loris the other way round: a prompt that does not fit into the buffers on the way is never taken."""
    connected, left = asyncio.Event(), asyncio.Event()

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a stream's transport reads
        connected.set()
        await left.wait()
        writer.transport.abort()

    server = await asyncio.start_server(never_read, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    options = OpenAIBackendOptions(backend_id="b1", url=url, model_names={"smol": "smol"}, connect_timeout_seconds=2.0)
    large = a_request("x" * 50_000_000)
    backend = OpenAIBackend(options)
    async with server:
        try:
            asking = asyncio.ensure_future(anext(backend.generate(large)))
            await asyncio.wait_for(connected.wait(), SOON_SECONDS)
            asking.cancel()  # as its reader does when nothing came for too long
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asking, SOON_SECONDS)
        finally:
            await asyncio.wait_for(backend.close(), SOON_SECONDS)
            left.set()


# --- TLS ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def https(
    issued: Issued,
    folder: Path,
    *,
    host: str = "127.0.0.1",
    only: ssl.TLSVersion | None = None,
    protocols: tuple[str, ...] = (),
) -> AsyncIterator[int]:
    """A server that answers over TLS, of one version or any, with this certificate; it offers the protocols."""
    context = issued.server_context(folder)
    if only is not None:
        context.minimum_version = context.maximum_version = only
        context.set_ciphers("ALL:@SECLEVEL=0")
    if protocols:
        context.set_alpn_protocols(list(protocols))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2"
        writer.write(head() + ANSWER)
        writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_server_that_its_authority_vouches_for_is_called_over_tls(tmp_path: Path) -> None:
    authority = Authority()
    async with https(authority.issue(), tmp_path) as port:
        assert await ask(f"https://127.0.0.1:{port}/v1", ca_pem=authority.pem.decode()) == ANSWER_EVENTS


async def test_a_server_that_would_rather_speak_http2_is_called_with_http1(tmp_path: Path) -> None:
    authority = Authority()
    async with https(authority.issue(), tmp_path, protocols=("h2", "http/1.1")) as port:
        assert await ask(f"https://127.0.0.1:{port}/v1", ca_pem=authority.pem.decode()) == ANSWER_EVENTS


DAY = timedelta(days=1)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("issue", "host", "is_trusted", "only", "problem"),
    [
        ({}, "127.0.0.1", False, None, "its certificate does not prove"),
        ({}, "127.0.0.2", True, None, "its certificate does not prove"),
        ({"begins": -9 * DAY, "ends": -DAY}, "127.0.0.1", True, None, "its certificate does not prove"),
        ({"begins": DAY}, "127.0.0.1", True, None, "its certificate does not prove"),
        ({}, "127.0.0.1", True, ssl.TLSVersion.TLSv1_1, ""),
    ],
    ids=["nobody vouches for it", "another host", "expired", "not valid yet", "TLS 1.1"],
)
async def test_a_server_that_does_not_prove_itself_gets_nothing(
    tmp_path: Path, issue: dict[str, Any], host: str, is_trusted: bool, only: ssl.TLSVersion | None, problem: str
) -> None:
    authority = Authority()
    async with https(authority.issue(**issue), tmp_path, host=host, only=only) as port:
        url = f"https://{host}:{port}/v1"
        with pytest.raises(BackendUnavailable) as raised:
            await ask(url, **({"ca_pem": authority.pem.decode()} if is_trusted else {}))
    assert raised.value.problem.startswith(problem)
    assert not raised.value.was_reached
    assert "secret" not in str(raised.value)


# --- without end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "is_streamed"),
    [
        ((head(), b"data: "), True),
        ((head(),), True),
        ((head("application/json"), b'{"choices": "'), False),
        ((b"HTTP/1.1 200 OK\r\nX-Endless: ",), True),
        ((b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n",), True),
    ],
    ids=["one event", "one line", "a whole answer", "a header", "an error"],
)
@pytest.mark.usefixtures("http_version")
async def test_a_hundred_megabytes_without_a_line_end_take_a_few_megabytes(
    before: tuple[Step, ...], is_streamed: bool
) -> None:
    sent_bytes = 0
    piece = b"x" * 65_536

    def endless() -> bytes:
        nonlocal sent_bytes
        sent_bytes += len(piece)
        return piece if sent_bytes < HUNDRED_MEGABYTES else b"\n\n"

    async with scripted_server(*before, endless) as server:
        tracemalloc.start()
        try:
            with pytest.raises(BackendUnavailable):
                await ask(server.url, stream=is_streamed)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)
    assert peak_bytes < 8 * 1024 * 1024
    assert sent_bytes < HUNDRED_MEGABYTES  # it hung up long before


# --- llama-cpp-python's server --------------------------------------------------------------------------------------

# Recorded from llama-cpp-python 0.3.36 (uvicorn 0.54.0, sse-starlette 3.7.0) with SmolLM2-135M-Instruct.Q4_1.gguf:
# everything that came on the connection. Each request asked for ``stream_options.include_usage``.
RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize(
    ("name", "pieces", "reason"),
    [
        ("stop", ["S", "m", "all", "ass", "y"], FinishReason.STOP),
        ("four_byte_characters", ["\U0001f31f", "\U0001f30d", "\U0001f30e", "\U0001f30f"], FinishReason.LENGTH),
        # It waited for another client's answer: 30 seconds of nothing but pings.
        ("pings", ["Hello", " there", "!"], FinishReason.LENGTH),
    ],
)
async def test_a_stream_without_usage_is_whole_though_it_was_asked_for(
    name: str, pieces: list[str], reason: FinishReason
) -> None:
    recorded = (RECORDED / f"{name}.http").read_bytes()
    async with scripted_server(recorded) as server:
        events = await ask(server.url)
        assert b'"include_usage":true' in server.received[0].body
    assert events == [*(Delta(content=piece) for piece in pieces), Finish(reason=reason)]


async def test_a_stream_that_it_interrupts_for_another_client_is_no_whole_answer() -> None:
    """With ``interrupt_requests``, its default, it ends a stream with [DONE], for whoever comes next."""
    recorded = (RECORDED / "interrupted.http").read_bytes()
    assert b"[DONE]" in recorded
    async with scripted_server(recorded, CLOSE) as server:
        with pytest.raises(BackendUnavailable, match="broke off before a finish reason"):
            await ask(server.url)

"""The OpenAI-compatible adapter: bad answers, and servers that give none, are typed errors."""

import asyncio
import gzip
import json
import socket
from contextlib import aclosing

import either_http
import pytest
from either_http import scripted_server
from h2.settings import SettingCodes
from openai_harness import (
    DONE,
    HELLO,
    HELLO_EVENTS,
    HTML,
    SECRET_PROMPT,
    SOON_SECONDS,
    STOP,
    backend_at,
    chunk,
    collect,
    event,
    failure_of,
    request,
)
from scripted_backend import CLOSE, HANG, RESET, WAIT, Step, chunked, head

from metergate.core.errors import BackendRejected, BackendUnavailable

pytestmark = pytest.mark.usefixtures("http_version")


ECHO = {"error": {"message": f"bad: {SECRET_PROMPT}", "type": "invalid_request_error", "code": 400}}


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Payload Too Large", "422 Unprocessable Entity"])
async def test_a_refused_request_is_rejected_and_the_message_is_not_kept(status: str) -> None:
    _, error = await failure_of(head("application/json", status), json.dumps(ECHO).encode())
    assert isinstance(error, BackendRejected)
    assert error.problem == f"HTTP {status[:3]} (invalid_request_error, 400)"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([head("application/json", "429 Too Many"), b'{"error":{"code":"rate_limit"}}'], "HTTP 429 (rate_limit)"),
        ([head("application/json", "404 Not Found"), b'{"error":"no such model"}'], "HTTP 404"),
        ([head("application/json", "401 Unauthorized"), b"{}"], "HTTP 401"),
        ([head("text/html", "502 Bad Gateway"), HTML], "HTTP 502"),
        ([head("text/html", "500 Oops"), HTML * 1000], "HTTP 500"),
        ([head("text/html", "503 Busy", extra="Content-Length: 9\r\n"), b"x", RESET], "HTTP 503"),
        ([head("text/html", "302 Found", extra="Location: http://127.0.0.1:1/\r\n")], "HTTP 302"),
        (
            [head("application/json", "500 Oops"), json.dumps({"error": {"type": SECRET_PROMPT * 3}}).encode()],
            "HTTP 500",
        ),
        ([head("text/html"), HTML], "it sent no text/event-stream"),
        ([head("application/json"), b'{"error":{"type":"overloaded"}}'], "it sent no text/event-stream (overloaded)"),
        ([head(), HTML], "its answer broke off before a finish reason"),
        ([head()], "its answer broke off before a finish reason"),
        ([head(), DONE], "its answer broke off before a finish reason"),
        ([head(extra="Content-Encoding: gzip\r\n"), gzip.compress(HELLO + STOP + DONE)], "its answer broke off before"),
        ([head(), event({"error": {"message": SECRET_PROMPT, "code": 500}})], "it reported an error (500)"),
        ([head(), event({"error": SECRET_PROMPT})], "it reported an error"),
        ([head(), event("text")], "it sent something else than a chat completion"),
        ([head(), b"data: {\n\n"], "it sent something else than a chat completion"),
        ([head(), b'data: {"a":' + b"[" * 100_000 + b"\n\n"], "it sent something else than a chat completion"),
        ([head(), event({"choices": [{"delta": {"content": 7}}]})], "it sent something else than a chat completion"),
        ([head(), b"data: \xff\xfe\n\n"], "it sent an event that is not UTF-8"),
        ([head(), b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'], "it sent something else than a chat"),
        ([head(), event({"choices": [{"index": 1, "delta": {"content": "x"}}]})], "it sent more than the one choice"),
        ([head(), event({"choices": [{"index": 0}, {"index": 0}]})], "it sent more than the one choice"),
        ([head(), chunk({"tool_calls": [{"function": {"name": "f"}}]})], "it sent a piece of a tool call without"),
        ([head(), chunk({"tool_calls": [{"index": -1}]})], "it sent a piece of a tool call with an index outside"),
        ([head(), chunk({}, "abort")], "it ended its answer with abort"),
        ([head(), b"data: " + b"x" * 1_100_000 + b"\n\n"], "it sent an event of more than 1048576 bytes"),
        ([head(), lambda: b"x" * 65536], "it sent an event of more than 1048576 bytes"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], "it sent something else than HTTP"),
        ([CLOSE], "it closed the connection without an answer"),
        ([RESET], None),
        # h2 takes an answer of another length for the end of the connection.
        ([head(extra="Content-Length: 100\r\n"), b": x\n\n"], ("its answer broke off", "it sent something else than")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_answer_is_an_unavailable_backend(
    script: list[Step], problem: str | tuple[str, ...] | None
) -> None:
    events, error = await failure_of(*script)
    assert events == [] or problem is None
    assert isinstance(error, BackendUnavailable)
    assert problem is None or error.problem.startswith(problem)


@pytest.mark.parametrize("takes_none", [False, True])
async def test_a_backend_that_says_that_it_takes_no_request_now_is_told_from_one_that_fails_at_this_one(
    takes_none: bool,
) -> None:
    others = ("401 Who", "404 Not Found", "500 Oops", "502 Bad", "504 Late")
    for status in ("429 Too Many", "503 Busy") if takes_none else others:
        _, error = await failure_of(head("application/json", status), b"{}")
        assert isinstance(error, BackendUnavailable)
        assert error.takes_none is takes_none


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ([], "its answer broke off before a finish reason"),
        ([DONE], "its answer broke off before a finish reason"),
        ([b'data: {"choices":[{"delta":{"cont'], "its answer broke off before a finish reason"),
        ([event({"error": {"type": "server_error"}})], "it reported an error (server_error)"),
        ([STOP, chunk({"content": "more"})], "its answer went on after the finish reason"),
    ],
    ids=["end", "done", "half an event", "error event", "more"],
)
async def test_a_failure_in_the_middle_comes_after_what_was_answered(rest: list[Step], problem: str) -> None:
    events, error = await failure_of(head(), HELLO, *rest)
    assert events[:2] == HELLO_EVENTS[:2]
    assert error.problem == problem


async def test_a_chunked_answer_without_its_end_is_an_unavailable_backend() -> None:
    _, error = await failure_of(chunked(HELLO, STOP, ended=False), CLOSE)
    assert error.problem == "its answer broke off"


async def test_a_connection_that_is_reset_in_the_middle_is_an_unavailable_backend() -> None:
    async with (
        scripted_server(head(), HELLO, WAIT, RESET) as server,
        backend_at(server.url) as backend,
        aclosing(backend.generate(request())) as events,
        asyncio.timeout(SOON_SECONDS),
    ):
        assert [await anext(events), await anext(events)] == HELLO_EVENTS[:2]
        server.go_on.set()
        with pytest.raises(BackendUnavailable, match="broke"):
            await anext(events)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{}", "its answer broke off before a finish reason"),
        (b"", "it sent something else than a chat completion"),
        (b"\xff", "it sent an answer that is not UTF-8"),
        (b'{"error":{"type":"overloaded"}}', "it reported an error (overloaded)"),
        (b" " * 1_100_000, "it sent an answer of more than 1048576 bytes"),
    ],
)
async def test_a_bad_answer_that_is_not_streamed_is_an_unavailable_backend(body: bytes, problem: str) -> None:
    _, error = await failure_of(head("application/json"), body, stream=False)
    assert error.problem == problem


async def test_a_port_that_refuses_is_an_unavailable_backend() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with backend_at(f"http://127.0.0.1:{unused.getsockname()[1]}/v1") as backend:
            with pytest.raises(BackendUnavailable, match=r"cannot be connected to \(ECONNREFUSED\)"):
                await collect(backend)


async def test_a_host_without_an_address_is_an_unavailable_backend() -> None:
    async with backend_at("http://no-such-host.invalid/v1") as backend:
        with pytest.raises(BackendUnavailable, match="cannot be resolved"):
            await collect(backend)


async def test_a_server_that_does_not_speak_tls_is_an_unavailable_backend() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, backend_at(url) as backend:
        with pytest.raises(BackendUnavailable, match="TLS failed"):
            await collect(backend)


async def test_a_connection_that_does_not_come_up_ends_with_its_time_limit() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)  # accepted by the system; nobody answers the TLS greeting
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with backend_at(url, connect_timeout_seconds=0.1) as backend:
            with pytest.raises(BackendUnavailable, match="no connection within the time limit"):
                await collect(backend)


async def test_requests_beyond_the_connections_wait_no_longer_than_for_a_connection() -> None:
    options = {
        "connections_max": 1,
        "connect_timeout_seconds": 0.5,
    }  # with HTTP/2 the server's part takes its time, too
    http2_only = {"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 1}} if either_http.http_version == "2" else {}
    async with (
        scripted_server(head(), HELLO, HANG, **http2_only) as server,
        backend_at(server.url, **options) as backend,
        aclosing(backend.generate(request())) as events,
    ):
        await anext(events)
        with pytest.raises(BackendUnavailable, match="no connection within the time limit"):
            await collect(backend)

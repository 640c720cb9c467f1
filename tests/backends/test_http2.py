"""What is different with HTTP/2: many answers share a connection, and none of them may harm another."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from backend_requests import a_request
from certificates import Authority
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame
from scripted_backend import CLOSE, HANG, WAIT, head, scripted_server
from scripted_http2 import Frames, ScriptedHttp2Server, goaway, reset, scripted_http2_server

from metergate.backends import http2, http2_connection
from metergate.backends.http2 import Http2Client
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.changes import changed
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish
from metergate.core.rows import FinishReason

SOON_SECONDS = 10.0

HI = b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}}]}\n\n'
STOP = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
EVENTS = [Delta(content="hi"), Finish(reason=FinishReason.STOP)]


@asynccontextmanager
async def backend_at(url: str, **options: Any) -> AsyncIterator[OpenAIBackend]:
    values: dict[str, Any] = {
        "backend_id": "b1",
        "url": url,
        "model_names": {"smol": "smol"},
        "connect_timeout_seconds": 2.0,
        "http_version": "2",
    }
    backend = OpenAIBackend(OpenAIBackendOptions(**(values | options)))
    try:
        yield backend
    finally:
        await backend.close()


async def ask(backend: OpenAIBackend, request: BackendRequest | None = None) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [event async for event in backend.generate(request or a_request())]


async def failure_of(backend: OpenAIBackend, **changes: Any) -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as raised:
        await ask(backend, changed(a_request(), **changes))
    return raised.value


@asynccontextmanager
async def running(backend: OpenAIBackend, count: int) -> AsyncIterator[list[Any]]:
    """So many answers, each after its first delta."""
    async with AsyncExitStack() as stack, asyncio.timeout(SOON_SECONDS):
        answers = [await stack.enter_async_context(aclosing(backend.generate(a_request()))) for _ in range(count)]
        for answer in answers:
            assert await anext(answer) == EVENTS[0]
        yield answers


@asynccontextmanager
async def serving(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server of bytes, and its URL; its connections end with the context."""
    connections: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append(task)
        with suppress(OSError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        await asyncio.wait_for(asyncio.gather(*connections), SOON_SECONDS)


def client_of(backend: OpenAIBackend) -> Http2Client:
    assert isinstance(backend._http, Http2Client)
    return backend._http


async def until(has_happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not has_happened():  # noqa: ASYNC110 - nothing in the product tells it
            await asyncio.sleep(0)


# --- one connection -------------------------------------------------------------------------------------------------


async def test_answers_that_come_at_once_share_a_connection() -> None:
    async with scripted_http2_server(head(), HI, WAIT, STOP) as server, backend_at(server.url) as backend:
        async with running(backend, 20) as answers:
            server.go_on.set()
            for answer in answers:
                assert [event async for event in answer] == EVENTS[1:]
        assert (server.connections, server.open_streams_max, server.resets) == (1, 20, [])


async def test_an_answer_that_is_left_is_reset_and_the_others_go_on() -> None:
    async with scripted_http2_server(head(), HI, WAIT, STOP) as server, backend_at(server.url) as backend:
        async with running(backend, 3) as answers:
            await answers[1].aclose()
            await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)
            server.go_on.set()
            for answer in (answers[0], answers[2]):
                assert [event async for event in answer] == EVENTS[1:]
        assert await ask(backend) == EVENTS
        assert (server.connections, server.resets, server.goodbyes) == (1, [3], 0)


async def test_a_reader_that_is_slow_holds_up_no_other_answer_and_its_own_is_not_read_ahead() -> None:
    endless = HI * 1_000

    def script_of(server: ScriptedHttp2Server) -> None:
        server.script, server.kept_script = [head(), lambda: endless], [head(), HI * 5_000, STOP]

    async with scripted_http2_server() as server, backend_at(server.url) as backend:
        script_of(server)
        async with running(backend, 1):
            for _ in range(5):  # each larger than the window
                assert len(await ask(backend)) == 5_001
            assert server.connections == 1
            assert server.sent_bytes < 2 * 65_536 + len(endless)


async def test_a_large_request_is_sent_as_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is answered with windows, which say nothing of an answer."""
    monkeypatch.setattr(http2_connection, "_EMPTY_FRAMES_MAX", 100)
    small = {SettingCodes.INITIAL_WINDOW_SIZE: 1_000}
    text = "x" * 2_000_000
    async with scripted_http2_server(head(), HI, STOP, settings=small) as server, backend_at(server.url) as backend:
        assert await ask(backend, a_request(text)) == EVENTS
        assert text in server.received[0].body.decode()


async def test_a_request_that_is_refused_before_it_is_read_is_not_sent_to_its_end() -> None:
    refusal = [head("application/json", "413 Too Large"), b'{"error": {"type": "too_large"}}']
    async with (
        scripted_http2_server(*refusal, answers_early=True) as server,
        backend_at(server.url) as backend,
    ):
        with pytest.raises(BackendRejected, match=r"HTTP 413 \(too_large\)"):
            await ask(backend, a_request("x" * 2_000_000))
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)
        assert server.resets == [1]


# --- the server's limit ---------------------------------------------------------------------------------------------


async def test_beyond_the_servers_limit_of_streams_further_connections_are_opened() -> None:
    two = {SettingCodes.MAX_CONCURRENT_STREAMS: 2}
    async with scripted_http2_server(head(), HI, WAIT, STOP, settings=two) as server, backend_at(server.url) as backend:
        async with running(backend, 5) as answers:
            server.go_on.set()
            for answer in answers:
                assert [event async for event in answer] == EVENTS[1:]
        assert (server.connections, server.open_streams_max) == (3, 2)


async def test_where_no_further_connection_may_be_opened_a_request_waits_for_a_place() -> None:
    one = {SettingCodes.MAX_CONCURRENT_STREAMS: 1}
    async with (
        scripted_http2_server(head(), HI, WAIT, STOP, settings=one) as server,
        backend_at(server.url, connections_max=1, connect_timeout_seconds=SOON_SECONDS) as backend,
        running(backend, 1) as answers,
    ):
        waiting = asyncio.ensure_future(ask(backend))
        await until(lambda: bool(client_of(backend)._waiters))
        assert len(server.received) == 1
        server.go_on.set()
        assert [event async for event in answers[0]] == EVENTS[1:]
        assert await waiting == EVENTS
        assert (server.connections, server.open_streams_max) == (1, 1)


async def test_a_server_that_takes_no_stream_is_not_connected_to_again_and_again() -> None:
    none = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
    async with (
        scripted_http2_server(head(), HI, STOP, settings=none) as server,
        backend_at(server.url, connect_timeout_seconds=0.3) as backend,
    ):
        failure = await failure_of(backend)
        assert (failure.problem, failure.was_reached) == ("no connection within the time limit", False)
        assert server.connections == 1


async def test_a_connection_is_replaced_after_so_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "_STREAMS_MAX", 2)
    async with scripted_http2_server(head(), HI, STOP) as server, backend_at(server.url) as backend:
        for _ in range(5):
            assert await ask(backend) == EVENTS
        assert server.connections == 3


async def test_an_idle_connection_is_closed_with_a_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "IDLE_CONNECTION_SECONDS", 0.05)
    async with scripted_http2_server(head(), HI, STOP) as server, backend_at(server.url) as backend:
        assert await ask(backend) == EVENTS
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)
        assert server.goodbyes == 1
        assert await ask(backend) == EVENTS
        assert server.connections == 2


async def test_a_connection_whose_server_has_gone_silent_gets_no_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is gone without a word would else take every request, for as long as one of them waits there."""
    monkeypatch.setattr(http2_connection, "_QUIET_SECONDS", -1.0)
    async with (
        scripted_http2_server(head(), HI, HANG) as server,
        backend_at(server.url) as backend,
        running(backend, 1),
    ):
        server.deaf_connections = 1
        asking = asyncio.ensure_future(ask(backend))
        [connection] = client_of(backend)._connections
        await until(lambda: connection._ping_seconds is not None)
        monkeypatch.setattr(http2_connection, "_PING_SECONDS", 0.0)
        server.script = [head(), HI, STOP]
        assert await ask(backend) == EVENTS
        assert server.connections == 2
        assert not asking.done()
        asking.cancel()


# --- the server says goodbye ----------------------------------------------------------------------------------------


async def test_an_answer_goes_on_after_a_goodbye_and_the_next_request_takes_another_connection() -> None:
    async with (
        scripted_http2_server(head(), HI, goaway(2**31 - 1), goaway(1), WAIT, STOP) as server,
        backend_at(server.url) as backend,
        running(backend, 1) as answers,
    ):
        [connection] = client_of(backend)._connections
        await until(lambda: not connection.has_room())
        server.script = [head(), HI, STOP]
        assert await ask(backend) == EVENTS
        assert server.connections == 2
        server.go_on.set()
        assert [event async for event in answers[0]] == EVENTS[1:]
        await asyncio.wait_for(connection.lost(), SOON_SECONDS)


@pytest.mark.parametrize(
    "refusal",
    [goaway(0), goaway(0, ErrorCodes.ENHANCE_YOUR_CALM), reset(ErrorCodes.REFUSED_STREAM)],
    ids=["goodbye", "angry goodbye", "refused stream"],
)
async def test_a_request_that_the_server_has_not_looked_at_is_told_and_a_repeat_goes_on_a_new_connection(
    refusal: Frames,
) -> None:
    async with scripted_http2_server(refusal, HANG) as server, backend_at(server.url) as backend:
        failure = await failure_of(backend)
        assert (failure.connection_was_kept, failure.was_reached) == (True, False)
        server.script = [head(), HI, STOP]
        assert await ask(backend, changed(a_request(), is_repeat=True)) == EVENTS
        assert server.connections == 2


async def test_requests_that_are_repeated_at_once_share_the_new_connection() -> None:
    async with scripted_http2_server(head(), HI, STOP) as server, backend_at(server.url) as backend:
        assert await ask(backend) == EVENTS
        repeated = changed(a_request(), is_repeat=True)
        assert await asyncio.gather(*(ask(backend, repeated) for _ in range(20))) == [EVENTS] * 20
        assert server.connections == 2


@pytest.mark.parametrize("code", [ErrorCodes.INTERNAL_ERROR, ErrorCodes.HTTP_1_1_REQUIRED, 0x1234])
async def test_a_reset_for_another_reason_is_a_failure_like_any_other(code: int) -> None:
    async with scripted_http2_server(reset(code), HANG) as server, backend_at(server.url) as backend:
        failure = await failure_of(backend)
        assert (failure.connection_was_kept, failure.was_reached) == (False, True)
        name = code.name if isinstance(code, ErrorCodes) else "an unknown code"
        assert failure.problem == f"it reset the stream without an answer ({name})"
        server.script = server.kept_script = [head(), HI, STOP]
        assert await ask(backend) == EVENTS  # the connection is as good as before
        assert server.connections == 1


async def test_a_reset_in_the_middle_comes_after_what_was_answered() -> None:
    script = (head(), HI, WAIT, reset(ErrorCodes.REFUSED_STREAM), HANG)
    async with (
        scripted_http2_server(*script) as server,
        backend_at(server.url) as backend,
        running(backend, 1) as answers,
    ):
        server.go_on.set()
        with pytest.raises(BackendUnavailable, match=r"its answer broke off \(REFUSED_STREAM\)") as raised:
            await anext(answers[0])
        assert not raised.value.connection_was_kept


async def test_answers_that_run_while_the_connection_ends_break_off() -> None:
    async with (
        scripted_http2_server(head(), HI, WAIT, CLOSE, HANG) as server,
        backend_at(server.url) as backend,
        running(backend, 3) as answers,
    ):
        server.go_on.set()
        for answer in answers:
            with pytest.raises(BackendUnavailable, match="its answer broke off") as raised:
                await anext(answer)
            assert not raised.value.connection_was_kept


# --- no HTTP/2 ------------------------------------------------------------------------------------------------------


async def test_a_server_that_speaks_http1_only_gets_nothing_of_the_request() -> None:
    came = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        came.extend(await reader.read())

    async with serving(serve) as url, backend_at(url) as backend:
        failure = await failure_of(backend)
        assert not await backend.is_up()
    assert (failure.problem, failure.was_reached) == ("it sent something else than HTTP/2", False)
    assert b"Hello" not in came
    assert b"chat" not in came


@pytest.mark.parametrize("offered", [[], ["http/1.1"]], ids=["nothing", "HTTP/1.1"])
async def test_over_tls_a_server_that_does_not_offer_http2_gets_nothing(tmp_path: Path, offered: list[str]) -> None:
    authority = Authority()
    context = authority.issue().server_context(tmp_path)
    if offered:
        context.set_alpn_protocols(offered)
    async with (
        scripted_server(head(), HI, STOP, tls=context) as server,
        backend_at(server.url, ca_pem=authority.pem.decode()) as backend,
    ):
        failure = await failure_of(backend)
        assert not await backend.is_up()
    assert (failure.problem, failure.was_reached) == ("it does not speak HTTP/2 over TLS", False)
    assert server.received == []


async def test_a_server_that_takes_connections_and_says_nothing_is_left_after_the_time_to_connect() -> None:
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(serve) as url, backend_at(url, connect_timeout_seconds=0.2) as backend:
        failure = await failure_of(backend)
        assert (failure.problem, failure.was_reached) == ("no connection within the time limit", False)
        assert not await backend.is_up()


# --- without end ----------------------------------------------------------------------------------------------------


def _padded(stream_id: int) -> bytes:
    frame = DataFrame(stream_id, data=b"", pad_length=255)
    frame.flags.add("PADDED")
    return frame.serialize()


async def test_padding_is_no_part_of_the_answer_and_does_not_use_up_its_window() -> None:
    padding = Frames(lambda stream_id: _padded(stream_id) * 300)  # 76,800 bytes of a window of 65,535
    script = (head(), padding, b": \n", padding, HI, padding, STOP)
    async with scripted_http2_server(*script) as server, backend_at(server.url) as backend:
        assert await ask(backend) == EVENTS
        assert server.connections == 1


def _begun_header(stream_id: int) -> bytes:
    return HeadersFrame(stream_id, data=b"\x00").serialize()


@pytest.mark.parametrize(
    ("begin", "repeat"),
    [
        (lambda stream_id: b"\xff\xff\xff\x00\x00" + stream_id.to_bytes(4, "big"), lambda _: b"x" * 65_536),
        (_begun_header, lambda stream_id: ContinuationFrame(stream_id, data=b"x" * 16_000).serialize()),
        (lambda _: b"", lambda stream_id: DataFrame(stream_id, data=b"").serialize() * 7_000),
        (lambda _: b"", lambda _: PingFrame(0, opaque_data=b"12345678").serialize() * 4_000),
        (lambda _: b"", lambda _: SettingsFrame(0, settings={SettingCodes.MAX_FRAME_SIZE: 16_384}).serialize() * 4_000),
        (lambda _: b"", lambda _: WindowUpdateFrame(0, window_increment=1).serialize() * 5_000),
        (lambda _: b"", lambda _: b"\x00\x00\x00\xfa\x00\x00\x00\x00\x00" * 7_000),
    ],
    ids=["a frame", "a header", "no data", "pings", "settings", "windows", "unknown frames"],
)
async def test_a_server_that_keeps_to_no_bound_is_left_and_takes_little_memory(
    begin: Callable[[int], bytes], repeat: Callable[[int], bytes]
) -> None:
    hundred_megabytes = Frames(repeat, times=100_000_000 // len(repeat(1)))
    async with (
        scripted_http2_server(head(), HI, WAIT, Frames(begin), hundred_megabytes, HANG) as server,
        backend_at(server.url) as backend,
        running(backend, 1) as answers,
    ):
        tracemalloc.start()
        try:
            server.go_on.set()
            with pytest.raises(BackendUnavailable, match="it sent something else than HTTP/2"):
                await anext(answers[0])
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)
    assert peak_bytes < 8 * 1024 * 1024


async def test_a_server_that_sends_more_than_the_window_is_left() -> None:
    beyond = Frames(lambda stream_id: DataFrame(stream_id, data=HI * 200).serialize(), times=100_000)
    async with (
        scripted_http2_server(head(), HI, WAIT, beyond, HANG) as server,
        backend_at(server.url) as backend,
        running(backend, 1) as answers,
    ):
        server.go_on.set()
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)  # nobody has read any of it
        with pytest.raises(BackendUnavailable, match="it sent something else than HTTP/2"):
            _ = [event async for event in answers[0]]


async def test_a_server_that_answers_nothing_and_asks_for_answers_is_left() -> None:
    """What is sent to a server that does not read it does not pile up."""
    asking = PingFrame(0, opaque_data=b"12345678").serialize() * 1_000

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a stream's transport reads
        writer.write(SettingsFrame(0).serialize())
        while True:
            writer.write(asking + DataFrame(1, data=b"").serialize())
            await writer.drain()

    async with serving(serve) as url, backend_at(url) as backend:
        failure = await failure_of(backend)
    assert failure.problem in ("it sent something else than HTTP/2", "it does not read what it is sent")


# --- TLS ------------------------------------------------------------------------------------------------------------


async def test_over_tls_many_answers_share_a_connection(tmp_path: Path) -> None:
    authority = Authority()
    context = authority.issue().server_context(tmp_path)
    async with (
        scripted_http2_server(head(), HI * 5_000, STOP, tls=context) as server,
        backend_at(server.url, ca_pem=authority.pem.decode()) as backend,
    ):
        answers = await asyncio.gather(*(ask(backend) for _ in range(10)))
        assert [len(events) for events in answers] == [5_001] * 10
        assert server.connections == 1
        assert await backend.is_up()


async def test_a_look_takes_no_part_of_the_connection_of_the_answers() -> None:
    one = {SettingCodes.MAX_CONCURRENT_STREAMS: 1}
    async with (
        scripted_http2_server(head(), HI, WAIT, STOP, settings=one) as server,
        backend_at(server.url, connections_max=1) as backend,
        running(backend, 1) as answers,
    ):
        assert await backend.is_up()
        server.go_on.set()
        assert [event async for event in answers[0]] == EVENTS[1:]

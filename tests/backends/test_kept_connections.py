"""A server may close a connection that it said to keep, in the instant in which a request is sent on it."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import either_http
import pytest
from backend_requests import a_request
from certificates import Authority
from either_http import scripted_server
from scripted_backend import CLOSE, RESET, Step, chunked

from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.changes import changed
from metergate.core.embedding import EmbeddingBackendRequest
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import BackendEvent, Delta, Finish
from metergate.core.rows import FinishReason

pytestmark = pytest.mark.usefixtures("http_version")

SOON_SECONDS = 10.0

ANSWER = chunked(
    b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\n', b"data: [DONE]\n\n"
)
ANSWER_EVENTS = [Delta(content="hi"), Finish(reason=FinishReason.STOP)]


def whole(body: bytes) -> bytes:
    """An answer that is not streamed, on a connection that is kept."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


WHOLE = whole(b'{"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}')
VECTORS = whole(b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}')

REQUEST = a_request()
TO_EMBED = EmbeddingBackendRequest(model_id="smol", inputs=("Hello",), dimensions=2, asks_dimensions=False)


@asynccontextmanager
async def backend_at(url: str, **options: Any) -> AsyncIterator[OpenAIBackend]:
    values: dict[str, Any] = {
        "backend_id": "b1",
        "url": url,
        "model_names": {"smol": "smol"},
        "connect_timeout_seconds": 2.0,
        "http_version": either_http.http_version,
    }
    backend = OpenAIBackend(OpenAIBackendOptions(**(values | options)))
    try:
        yield backend
    finally:
        await backend.close()


async def ask(backend: OpenAIBackend, *, is_repeat: bool = False) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [event async for event in backend.generate(changed(REQUEST, is_repeat=is_repeat))]


@pytest.mark.parametrize("closing", [[CLOSE], [RESET]], ids=["closed", "reset"])
@pytest.mark.parametrize(("answer", "stream"), [(ANSWER, True), (WHOLE, False)], ids=["streamed", "whole"])
async def test_a_kept_connection_that_ends_instead_of_an_answer_is_told_and_a_repeat_goes_on_a_new_one(
    closing: Sequence[Step], answer: bytes, stream: bool
) -> None:
    async with scripted_server(answer, kept=closing) as server, backend_at(server.url, stream=stream) as backend:
        assert await ask(backend) == ANSWER_EVENTS
        with pytest.raises(BackendUnavailable) as raised:
            await ask(backend)
        assert raised.value.connection_was_kept
        assert raised.value.was_reached
        # A connection is kept again: the repeat must not take that one.
        assert await ask(backend) == ANSWER_EVENTS
        assert await ask(backend, is_repeat=True) == ANSWER_EVENTS
        assert (server.connections, len(server.received)) == (3, 4)


@pytest.mark.parametrize("closing", [[CLOSE], [RESET]], ids=["closed", "reset"])
async def test_over_tls_it_is_told_too(tmp_path: Path, closing: Sequence[Step]) -> None:
    authority = Authority()
    context = authority.issue().server_context(tmp_path)
    async with (
        scripted_server(ANSWER, kept=closing, tls=context) as server,
        backend_at(server.url, ca_pem=authority.pem.decode()) as backend,
    ):
        assert await ask(backend) == ANSWER_EVENTS
        with pytest.raises(BackendUnavailable) as raised:
            await ask(backend)
        assert raised.value.connection_was_kept
        assert await ask(backend, is_repeat=True) == ANSWER_EVENTS


@pytest.mark.parametrize("closing", [[CLOSE], [RESET]], ids=["closed", "reset"])
async def test_of_embeddings_it_is_told_too(closing: Sequence[Step]) -> None:
    async with scripted_server(VECTORS, kept=closing) as server, backend_at(server.url) as backend:
        embeddings = await backend.embed(TO_EMBED)
        assert list(embeddings.vectors) == [array("f", [1.0, 2.0])]
        with pytest.raises(BackendUnavailable) as raised:
            await backend.embed(TO_EMBED)
        assert raised.value.connection_was_kept
        assert await backend.embed(changed(TO_EMBED, is_repeat=True)) == embeddings


@pytest.mark.parametrize(
    "kept",
    [
        [b"H", CLOSE],
        [b"HTTP/1.1 200 OK\r\n", CLOSE],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", CLOSE],
        [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", CLOSE],
        [b"220 smtp ready\r\n", CLOSE],
    ],
    ids=["a byte", "half a head", "a head", "an error", "no HTTP"],
)
async def test_after_a_byte_of_an_answer_it_is_a_failure_like_any_other(kept: Sequence[Step]) -> None:
    async with scripted_server(ANSWER, kept=kept) as server, backend_at(server.url) as backend:
        assert await ask(backend) == ANSWER_EVENTS
        with pytest.raises(BackendUnavailable) as raised:
            await ask(backend)
    assert not raised.value.connection_was_kept


@pytest.mark.parametrize("script", [[CLOSE], [RESET]], ids=["closed", "reset"])
async def test_on_a_new_connection_it_is_a_failure_like_any_other(script: Sequence[Step]) -> None:
    async with scripted_server(*script) as server, backend_at(server.url) as backend:
        for is_repeat in (False, True):
            with pytest.raises(BackendUnavailable) as raised:
                await ask(backend, is_repeat=is_repeat)
            assert not raised.value.connection_was_kept


async def test_a_repeat_that_ends_so_too_is_a_failure_like_any_other() -> None:
    async with scripted_server(ANSWER, kept=[CLOSE]) as server, backend_at(server.url) as backend:
        assert await ask(backend) == ANSWER_EVENTS
        server.script = [CLOSE]
        told = []
        for is_repeat in (False, True):
            with pytest.raises(BackendUnavailable) as raised:
                await ask(backend, is_repeat=is_repeat)
            told.append(raised.value.connection_was_kept)
    assert told == [True, False]


async def test_a_server_that_closes_right_after_each_answer_is_met_in_every_way_and_each_is_told() -> None:
    """As llama.cpp's does after a stream, though it said to keep the connection."""
    problems: list[BackendUnavailable] = []
    async with scripted_server(ANSWER, CLOSE) as server, backend_at(server.url) as backend:
        for _ in range(50):
            try:
                await ask(backend)
            except BackendUnavailable as problem:
                problems.append(problem)
                await ask(backend, is_repeat=True)
    assert [problem.problem for problem in problems if not problem.connection_was_kept] == []


async def test_what_the_backend_has_had_for_long_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("kept_connections", "http2_connection"):
        monkeypatch.setattr(f"metergate.backends.{module}.CROSSING_SECONDS", 0.0)
    async with scripted_server(ANSWER, kept=[CLOSE]) as server, backend_at(server.url) as backend:
        assert await ask(backend) == ANSWER_EVENTS
        with pytest.raises(BackendUnavailable) as raised:
            await ask(backend)
    assert not raised.value.connection_was_kept

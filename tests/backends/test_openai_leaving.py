"""The OpenAI-compatible adapter: whoever leaves an answer closes its connection, and nothing is left behind."""

import asyncio
import gc
from contextlib import aclosing

import pytest
from either_http import scripted_server
from openai_harness import DONE, HELLO, HTML, SOON_SECONDS, STOP, backend_at, chunk, collect, request
from scripted_backend import HANG, RESET, Step, head

from metergate.backends.http1 import Http1Client
from metergate.backends.http2 import Http2Client
from metergate.core.errors import BackendUnavailable

pytestmark = pytest.mark.usefixtures("http_version")


async def test_closing_the_generator_closes_the_connection() -> None:
    async with scripted_server(head(), HELLO, HANG) as server, backend_at(server.url) as backend:
        async with aclosing(backend.generate(request())) as events:
            await anext(events)
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


@pytest.mark.parametrize(
    "script",
    [
        [HANG],
        [head(), HANG],
        [head(), HELLO, HANG],
        [head(), HELLO, STOP, DONE, HANG],
        [head("text/html", "500 Oops"), HANG],
    ],
    ids=["before the head", "before a byte", "between deltas", "before the end", "in an error"],
)
async def test_a_cancelled_task_closes_the_connection(script: list[Step]) -> None:
    async with scripted_server(*script) as server, backend_at(server.url) as backend:
        task = asyncio.create_task(collect(backend))
        await asyncio.wait_for(server.is_reached.wait(), SOON_SECONDS)
        for _ in range(10):  # let it get to the await that hangs
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, BackendUnavailable)):
            await task
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


async def test_closing_the_backend_ends_its_streams() -> None:
    async with (
        scripted_server(head(), HELLO, HANG) as server,
        backend_at(server.url) as backend,
        aclosing(backend.generate(request())) as events,
        asyncio.timeout(SOON_SECONDS),
    ):
        await anext(events)
        await backend.close()
        await server.is_left.wait()


async def test_no_task_or_connection_is_left_behind() -> None:
    before = asyncio.all_tasks()
    for script in ([head(), HELLO, STOP, DONE], [head(), HELLO], [RESET], [head("text/html", "500 Oops"), HTML]):
        async with scripted_server(*script) as server, backend_at(server.url) as backend:
            for _ in range(3):
                try:
                    await collect(backend)
                except BackendUnavailable:
                    continue
            if isinstance(backend._http, Http1Client):
                assert backend._http._session.connector is not None
                assert not backend._http._session.connector._acquired
            else:
                assert isinstance(backend._http, Http2Client)
                assert all(not connection._streams for connection in backend._http._connections)
    gc.collect()  # what was left open warns here, and warnings are errors
    assert asyncio.all_tasks() == before


async def test_an_endless_answer_is_read_no_faster_than_it_is_consumed() -> None:
    # Without a limit the server could send as much as it can in the meantime.
    endless = chunk({"content": "x" * 20}) * 100
    async with scripted_server(head(), lambda: endless) as server, backend_at(server.url) as backend:
        async with aclosing(backend.generate(request())) as events:
            await anext(events)
            sent_bytes = -1
            while sent_bytes != server.sent_bytes:  # until it is stuck
                sent_bytes = server.sent_bytes
                await asyncio.sleep(0.1)
            await anext(events)
        # The kernel's two socket buffers come on top of what the adapter reads ahead.
        assert sent_bytes < 16 * 1024 * 1024
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)

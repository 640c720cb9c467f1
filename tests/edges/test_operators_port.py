"""The operator's HTTP port: pages, and all that may be sent to it."""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from metering_world import STOP, World, content
from prometheus_client.parser import text_string_to_metric_families

from metergate.core.catalog import Catalog
from metergate.core.errors import ListenerRefused
from metergate.edges import http
from metergate.edges.http import HttpServer, operators_pages
from metergate.edges.readiness import Readiness
from metergate.telemetry.metrics import Metrics


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[HttpServer, World, Readiness]]:
    """The port in front of a metering world that was looked at once."""
    metrics = Metrics(Catalog({}), time.monotonic)
    world = await World([*content("one"), STOP], observers=[metrics]).fund(10_000)
    readiness = Readiness(world.ledger, lambda: world.pool)
    await readiness.look()
    server = await HttpServer.start(
        "127.0.0.1:0", operators_pages(metrics, world.metering, readiness, lambda: metrics.queued.set(3))
    )
    try:
        yield server, world, readiness
    finally:
        await server.close()


async def fetch(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    url = f"http://127.0.0.1:{server.port}{path}"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
        session.request(method, url, headers=headers) as response,
    ):
        return response.status, response.headers["Content-Type"], await response.text()


async def send(server: HttpServer, data: bytes) -> bytes:
    """What comes back until the server closes, for bytes that are sent to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_metrics_show_what_is_now_and_what_was() -> None:
    async with serving() as (server, world, _):
        await world.stream()
        status, content_type, body = await fetch(server, "/metrics")
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if not sample.labels
        }
        assert values["metergate_active_reservations"] == 0
        assert values["metergate_oldest_reservation_seconds"] == 0
        assert values["metergate_store_queued_operations"] == 3
        assert values["metergate_capture_seconds_count"] == 1
        assert values["process_resident_memory_bytes"] > 1_000_000


async def test_a_running_request_is_active_and_ages() -> None:
    async with serving() as (server, world, _):
        world.backend.script = [*content("one"), asyncio.Event()]
        streaming = asyncio.create_task(world.stream())
        await world.sink.delivered.wait()
        body = (await fetch(server, "/metrics"))[2]
        assert "metergate_active_reservations 1.0" in body
        assert "metergate_oldest_reservation_seconds 0.0\n" not in body
        streaming.cancel()
        await asyncio.wait([streaming])
        await world.settled()


async def test_openmetrics_is_negotiated() -> None:
    async with serving() as (server, _, _):
        _, content_type, body = await fetch(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith("# EOF\n")


async def test_a_gateway_that_is_up_is_alive_and_one_that_can_serve_is_ready() -> None:
    async with serving() as (server, _, _):
        assert await fetch(server, "/livez") == (200, "text/plain; charset=utf-8", "ok\n")
        status, content_type, body = await fetch(server, "/readyz")
        assert (status, content_type) == (200, "application/json")
        checks = {"ledger": "ok", "audit": "ok", "backends": {"backend-1": "up"}, "draining": False}
        assert json.loads(body) == {"ready": True, "checks": checks}


async def test_a_gateway_that_drains_is_alive_but_not_ready() -> None:
    async with serving() as (server, _, readiness):
        readiness.drain()
        assert (await fetch(server, "/livez"))[0] == 200
        status, _, body = await fetch(server, "/readyz")
        assert status == 503
        assert json.loads(body)["checks"]["draining"] is True


async def test_other_paths_and_methods_are_refused() -> None:
    async with serving() as (server, _, _):
        status, _, body = await fetch(server, "/secret")
        assert status == 404
        assert "/metrics /livez /readyz" in body
        assert (await fetch(server, "/metrics", "POST"))[0] == 405
        assert (await fetch(server, "/livez", "HEAD"))[0] == 200


async def test_a_connection_serves_one_request() -> None:
    async with serving() as (server, _, _):
        answer = await send(server, 2 * b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"Connection: close" in answer


async def test_garbage_hurts_nobody_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    noise = random.Random(7)
    heads = [b"", b"GET /metrics HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"POST /"]
    async with serving() as (server, world, _):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            for _ in range(200):
                await send(server, noise.choice(heads) + noise.randbytes(noise.randint(0, 4_000)) + b"\r\n\r\n")
        assert (await fetch(server, "/livez"))[0] == 200
        await world.stream()
        assert world.sink.text() == "one"
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    ],
)
async def test_a_head_that_is_too_long_is_refused(request_text: bytes) -> None:
    async with serving() as (server, _, _):
        answer = await send(server, request_text)
        assert b"200 OK" not in answer
        assert (await fetch(server, "/livez"))[0] == 200


async def test_who_says_nothing_or_not_enough_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 0.05)
    async with serving() as (server, _, _):
        assert await send(server, b"") == b""
        assert await send(server, b"GET /metrics HTTP/1.1\r\nHost") == b""
        assert b"405" in await send(server, b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")


async def test_more_connections_than_the_limit_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    async with serving() as (server, _, _):
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        assert await send(server, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        for reader, writer in held:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in await reader.read()
            writer.close()
        assert (await fetch(server, "/livez"))[0] == 200


async def test_an_address_in_use_is_refused_with_its_name() -> None:
    async with serving() as (server, _, _):
        address = f"127.0.0.1:{server.port}"
        with pytest.raises(ListenerRefused, match=address):
            await HttpServer.start(address, {})


@pytest.mark.parametrize("address", ["256.0.0.1:1", "nowhere.invalid:1", "127.0.0.1:99999"])
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ListenerRefused):
        await HttpServer.start(address, {})


async def test_closing_cuts_every_connection() -> None:
    async with serving() as (server, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()

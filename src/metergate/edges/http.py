"""The operator's HTTP port: metrics, liveness, readiness. A page a path, a request a connection.

Whatever is sent here, it cannot hurt the gateway: few connections, short lives, small heads, no bodies, one rendering
at a time.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, Self

from aiohttp import web

from metergate.edges.listening import listener_refused
from metergate.edges.readiness import Readiness
from metergate.metering.pool import Pool
from metergate.metering.use_case import Metering
from metergate.telemetry.metrics import BackendLoad, Metrics

# Prometheus in two or three replicas, a balancer and a kubelet: ten at once are many.
CONNECTIONS_MAX = 64

# A connection lives at most twice this long: a scrape takes milliseconds, and no more than one is served on it.
CONNECTION_SECONDS = 5.0

# Whoever was cut off is gone at once; a page that is being rendered takes milliseconds.
CLOSING_SECONDS = 1.0

# A path and a few headers, among them Prometheus's long Accept.
LINE_BYTES_MAX = 2_048
HEADERS_MAX = 64

# aiohttp tells of each connection that speaks no HTTP; a scan of the port must not fill the log.
_silent = logging.getLogger(f"{__name__}.aiohttp")
_silent.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a path shows."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


# From the request's Accept header to the page.
Pages = Mapping[str, Callable[[str], Awaitable[Page]]]


class HttpServer:
    """Serves pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._handlers = web.Server(
            self._answer,
            access_log=None,
            logger=_silent,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
            lingering_time=0.0,
        )
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[NoReturn] | None = None
        self.port = 0

    @classmethod
    async def start(cls, address: str, pages: Pages) -> Self:
        """Listen on ``address`` (HOST:PORT, port 0: any that is free) and serve. ListenerRefused if that cannot be."""
        self = cls(pages)
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, host.strip("[]"), int(port))
        except (OSError, ValueError, OverflowError) as exc:
            raise listener_refused(address, "metrics.address") from exc
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        assert self._server is not None
        assert self._sweeping is not None
        self._sweeping.cancel()
        self._server.close()
        _abort(self._handlers.connections)
        await self._handlers.shutdown(CLOSING_SECONDS)
        await asyncio.wait([self._sweeping])

    def _accept(self) -> asyncio.Protocol:
        if len(self._handlers.connections) >= CONNECTIONS_MAX:
            return _Refusal()
        return self._handlers()

    async def _sweep(self) -> NoReturn:
        """Cut what was there the last time already: an idle connection, a slow sender, a slow reader."""
        before: set[object] = set()
        while True:
            await asyncio.sleep(CONNECTION_SECONDS)
            connections = self._handlers.connections
            _abort([connection for connection in connections if connection in before])
            before = set(connections)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        render = self._pages.get(request.path)
        if render is None:
            page = Page(body=f"There is only: {' '.join(self._pages)}\n".encode(), status=404)
        elif request.method not in ("GET", "HEAD"):
            page = Page(body=b"Only GET is served here.\n", status=405)
        else:
            page = await render(request.headers.get("Accept", ""))
        response = web.Response(body=page.body, status=page.status, headers={"Content-Type": page.content_type})
        response.force_close()
        return response


def _abort(connections: Iterable[web.RequestHandler]) -> None:
    for connection in connections:
        if connection.transport is not None:
            connection.transport.abort()  # closing it would wait for a slow reader


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it at once."""
        transport.abort()  # type: ignore[attr-defined]  # a stream's transport


def operators_pages(metrics: Metrics, metering: Metering, readiness: Readiness, refresh: Callable[[], None]) -> Pages:
    """Return the pages that an operator's tools read; ``refresh`` tells the metrics what else they need."""
    rendering = asyncio.Lock()

    async def show_metrics(accept: str) -> Page:
        metrics.running.set(metering.running)
        metrics.oldest_seconds.set(metering.oldest_run_seconds)
        refresh()
        metrics.pooled(_loads(metering.offering.pool))
        async with rendering:
            body, content_type = await asyncio.to_thread(metrics.render, accept)
        return Page(body=body, content_type=content_type)

    async def show_life(accept: str) -> Page:
        return Page(body=b"ok\n")

    async def show_readiness(accept: str) -> Page:
        report = readiness.report
        return Page(
            body=json.dumps(report.as_json()).encode() + b"\n",
            content_type="application/json",
            status=200 if report.is_ready else 503,
        )

    return {"/metrics": show_metrics, "/livez": show_life, "/readyz": show_readiness}


def _loads(pool: Pool) -> dict[str, BackendLoad]:
    now_seconds = asyncio.get_running_loop().time()
    return {
        backend_id: BackendLoad(
            in_flight=member.outstanding,
            queued=len(member.queue),
            is_up=member.is_up,
            ejected=member.ejected(now_seconds),
        )
        for backend_id, member in pool.members.items()
    }

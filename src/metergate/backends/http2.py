"""HTTP/2: many answers on one connection, and as many connections as the server's limit of streams asks for."""

import asyncio
import errno
from collections.abc import Mapping
from socket import SOCK_STREAM, gaierror
from ssl import SSLCertVerificationError, SSLContext, SSLError

from aiohappyeyeballs import start_connection
from yarl import URL

from metergate.backends.http2_connection import Http2Connection
from metergate.backends.http2_stream import Http2Stream
from metergate.backends.http_client import IDLE_CONNECTION_SECONDS, HttpAnswer, HttpFailed, HttpOptions

# A second address of a host is tried beside the first after this long (RFC 8305 recommends it).
_NEXT_ADDRESS_SECONDS = 0.25

_LATE = "no connection within the time limit"

# Why there is no connection, for people, by the first class that fits.
_PROBLEMS: tuple[tuple[type[OSError], str], ...] = (
    (TimeoutError, _LATE),
    (gaierror, "its host name cannot be resolved"),
    (SSLCertVerificationError, "its certificate does not prove that it is the host of its URL"),
    (SSLError, "TLS failed"),
)


class Http2Client:
    """Sends requests to one server. Create it within the event loop that uses it; to be closed."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._url = URL(options.origin)
        self._tls = _tls(options) if self._url.scheme == "https" else None
        self._headers = {"Accept": "*/*", **options.headers}
        self._connections: list[Http2Connection] = []
        self._made = 0  # connections; each is numbered from 1
        self._opening: asyncio.Task[None] | None = None
        self._failure: HttpFailed | None = None  # why the last one could not be made
        self._failures = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._is_closed = False

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, is_repeat: bool) -> HttpAnswer:
        """Send the request and return the head of the answer."""
        newer_than = self._made if is_repeat else 0
        try:
            async with asyncio.timeout(self._options.connect_timeout_seconds):
                connection = await self._with_room(newer_than)
        except TimeoutError:
            raise HttpFailed(_LATE, was_reached=False) from None
        all_headers = {**self._headers, "Content-Length": str(len(body)), **headers}
        stream = connection.begin("POST", URL(url, encoded=True), all_headers, has_body=True)
        try:
            await stream.send(body)
            await stream.head()
        except BaseException:
            stream.close()
            raise
        return stream

    async def look(self, url: str, *, seconds: float) -> int | None:
        """The status that a new connection gets; None if there is one and no answer in time."""
        connection = await self._connect(0)
        stream: Http2Stream | None = None
        try:
            if not connection.has_room():
                return None
            stream = connection.begin("GET", URL(url, encoded=True), self._headers, has_body=False)
            async with asyncio.timeout(seconds):
                await stream.head()
            return stream.status
        except TimeoutError:
            return None
        finally:
            connection.give_up(HttpFailed("it was looked at"))

    async def close(self) -> None:
        """Close all connections, those in use included."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        failure = HttpFailed("the gateway closed the connection")
        self._fail(failure)
        self._wake()
        for connection in list(self._connections):
            connection.give_up(failure)
            await connection.lost()

    # --- where a request goes -----------------------------------------------------------------------------------

    async def _with_room(self, newer_than: int) -> Http2Connection:
        """A connection that has room now and a larger number; HttpFailed if none can be opened."""
        while True:
            usable = [connection for connection in self._connections if connection.number > newer_than]
            for connection in usable:
                if connection.has_room():
                    return connection
            # A server that takes no stream at all would be connected to for ever.
            if self._opening is None and not any(connection.streams_max == 0 for connection in usable):
                self._open()
            failures = self._failures
            await self._changed()
            if self._failure is not None and self._failures > failures:
                raise self._failure.again() from self._failure.__cause__

    def _open(self) -> None:
        if self._is_closed:
            raise HttpFailed("the gateway closed the connection")
        if sum(not connection.is_closing for connection in self._connections) < self._options.connections_max:
            self._opening = asyncio.create_task(self._add_connection())

    async def _add_connection(self) -> None:
        try:
            connection = await self._connect(self._made + 1)
            self._made += 1
            self._connections.append(connection)
        except HttpFailed as exc:
            self._fail(exc)
        finally:
            self._opening = None
            self._wake()

    def _fail(self, failure: HttpFailed) -> None:
        """Tell all that wait for a connection now."""
        self._failure = failure
        self._failures += 1

    async def _connect(self, number: int) -> Http2Connection:
        """A new connection whose server speaks HTTP/2; HttpFailed if there is none in time."""
        connection: Http2Connection | None = None
        try:
            async with asyncio.timeout(self._options.connect_timeout_seconds):
                connection = await self._connected(number)
                await connection.ready()
                return connection
        except BaseException as exc:
            if connection is not None:
                connection.give_up(HttpFailed(_LATE, was_reached=False))
            if isinstance(exc, OSError):  # a time-out is one, too
                raise _unreached(exc) from exc
            raise

    async def _connected(self, number: int) -> Http2Connection:
        loop = asyncio.get_running_loop()
        host, port = self._url.host or "", self._url.port or 443
        addresses = await loop.getaddrinfo(host, port, type=SOCK_STREAM)
        socket = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1, loop=loop)
        try:
            _, connection = await loop.create_connection(
                lambda: Http2Connection(self._room, idle_seconds=IDLE_CONNECTION_SECONDS, number=number),
                sock=socket,
                ssl=self._tls,
                server_hostname=None if self._tls is None else host,
            )
        except BaseException:
            socket.close()
            raise
        return connection

    def _room(self) -> None:
        """A connection may have room, or takes no more."""
        self._connections = [connection for connection in self._connections if not connection.is_lost]
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _changed(self) -> None:
        """Wait until a connection may have room, or could not be made."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


def _tls(options: HttpOptions) -> SSLContext:
    context = options.tls()
    context.set_alpn_protocols(["h2"])
    return context


def _unreached(failure: OSError) -> HttpFailed:
    if isinstance(failure, SSLError) and "NO_APPLICATION_PROTOCOL" in (failure.reason or ""):
        return HttpFailed("it does not speak HTTP/2 over TLS", was_reached=False)
    problem = next((text for kind, text in _PROBLEMS if isinstance(failure, kind)), None)
    if problem is None:
        name = errno.errorcode.get(failure.errno or 0)
        problem = "it cannot be connected to" + (f" ({name})" if name else "")
    return HttpFailed(problem, was_reached=False)

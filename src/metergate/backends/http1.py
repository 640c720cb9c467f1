"""HTTP/1.1: a connection carries one answer, and is kept for the next."""

import asyncio
import errno
from collections.abc import Mapping

import aiohttp

from metergate.backends.http_client import IDLE_CONNECTION_SECONDS, HttpFailed, HttpOptions
from metergate.backends.kept_connections import KeepingConnector, ended_kept_connection

# Read ahead of the consumer: about 60 deltas of 250 bytes. aiohttp stops reading the socket at twice this; what the
# last read of the socket brought (up to 256 KiB) comes on top.
_READ_AHEAD_BYTES = 16 * 1024

# What went wrong, for people, by the first class that fits. No text of an error is passed on: aiohttp quotes the peer.
_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "no connection within the time limit"),
    (aiohttp.ClientConnectorDNSError, "its host name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "its certificate does not prove that it is the host of its URL"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (aiohttp.ClientConnectorError, "it cannot be connected to"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "its answer broke off"),
    (aiohttp.ClientConnectionError, "the connection broke"),
    (aiohttp.ClientResponseError, "it sent something else than HTTP"),
    (aiohttp.InvalidURL, "its URL is invalid"),
)
_FAILURES = (aiohttp.ClientError, OSError)

# The connection was not made, so nothing was sent on it. (A connect timeout is a wait for a free connection, too.)
_UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Http1Client:
    """Sends requests to one server, with aiohttp."""

    def __init__(self, options: HttpOptions) -> None:
        # True: what the system trusts.
        tls = True if options.ca_pem is None else options.tls()
        limit = options.connections_max
        self._session = _session(options, KeepingConnector(limit=limit, idle_seconds=IDLE_CONNECTION_SECONDS, tls=tls))
        self._repeats = _session(options, KeepingConnector(limit=limit, idle_seconds=None, tls=tls))
        # Connections of its own, for a look each: those of the answers may all be in use.
        self._looks = _session(options, aiohttp.TCPConnector(limit=1, force_close=True, ssl=tls))

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, is_repeat: bool) -> "_Http1Answer":
        """Send the request and return the head of the answer."""
        session = self._repeats if is_repeat else self._session
        began_seconds = asyncio.get_running_loop().time()
        try:
            return _Http1Answer(await session.post(url, data=body, headers=headers, allow_redirects=False))
        except _FAILURES as exc:
            seconds = asyncio.get_running_loop().time() - began_seconds
            raise _failed(exc, connection_was_kept=ended_kept_connection(exc, seconds)) from _cause(exc)

    async def look(self, url: str, *, seconds: float) -> int | None:
        """The status that a new connection gets; None if there is one and no answer in time."""
        timeout = aiohttp.ClientTimeout(total=None, connect=self._looks.timeout.connect, sock_read=seconds)
        try:
            async with self._looks.get(url, allow_redirects=False, timeout=timeout) as response:
                return response.status
        except aiohttp.SocketTimeoutError:
            return None
        except (*_FAILURES, ValueError) as exc:
            raise _failed(exc) from _cause(exc)

    async def close(self) -> None:
        """Close all connections, those in use included."""
        for session in (self._session, self._repeats, self._looks):
            await session.close()


class _Http1Answer:
    """An answer of aiohttp's."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.content_type

    async def read(self) -> bytes:
        """What has come of the body, at least a byte; nothing at its end."""
        try:
            return await self._response.content.readany()
        except _FAILURES as exc:
            raise _failed(exc) from _cause(exc)

    def close(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        self._response.close()


def _session(options: HttpOptions, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        headers=options.headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_seconds),
        read_bufsize=_READ_AHEAD_BYTES,
    )


def _failed(failure: Exception, *, connection_was_kept: bool = False) -> HttpFailed:
    problem = next((text for kind, text in _PROBLEMS if isinstance(failure, kind)), type(failure).__name__)
    # Numbers of TLS errors are OpenSSL's own.
    if isinstance(failure, OSError) and not isinstance(failure, aiohttp.ClientSSLError):
        name = errno.errorcode.get(failure.errno or 0)
        problem += f" ({name})" if name else ""
    was_reached = not isinstance(failure, _UNREACHED)
    return HttpFailed(problem, was_reached=was_reached, connection_was_kept=connection_was_kept)


def _cause(failure: Exception) -> OSError | None:
    """What may be printed with an error: aiohttp's errors of the protocol quote the peer, and show the key."""
    return failure if isinstance(failure, OSError) else None

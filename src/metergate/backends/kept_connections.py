"""HTTP/1.1 connections that are kept for the next request, and whether one ended instead of answering it.

Either side may close a kept connection at any time, also in the instant in which a request is sent on it. The request
is then lost without a fault of anybody, and may be sent once more. llama.cpp's server says to keep a connection and
closes it right after each stream: who asks at once meets that every time.
"""

import errno
from contextvars import ContextVar
from ssl import SSLContext
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from metergate.backends.http_client import CROSSING_SECONDS

# How the system says that the peer has closed a connection, beside telling its end.
_CLOSED_BY_PEER = frozenset({errno.ECONNRESET, errno.EPIPE})

# Whether the connection that this task was given last had been used before.
_is_kept: ContextVar[bool] = ContextVar("_is_kept", default=False)


class KeepingConnector(aiohttp.TCPConnector):
    """Notes whether a connection was kept.

    aiohttp's traces would tell it too, and cost each request a sixth more time.
    """

    def __init__(self, *, limit: int, idle_seconds: float | None, tls: SSLContext | bool) -> None:
        """``idle_seconds`` is how long a connection is kept; None: each is used once."""
        if idle_seconds is None:
            super().__init__(limit=limit, force_close=True, ssl=tls)
        else:
            super().__init__(limit=limit, keepalive_timeout=idle_seconds, ssl=tls)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        """A connection, new or kept."""
        _is_kept.set(False)
        connection = await super().connect(req, traces, timeout)
        assert connection.protocol is not None
        _is_kept.set(connection.protocol in self._used)
        self._used.add(connection.protocol)
        return connection


def ended_kept_connection(failure: Exception, seconds: float) -> bool:
    """Whether this failure of this task's request is the end of a kept connection, at once and without a byte.

    ``seconds`` is how long after the sending it came. What came before a reset is lost with it: taken for nothing.
    """
    if seconds >= CROSSING_SECONDS or not _is_kept.get():
        return False
    if isinstance(failure, aiohttp.ServerDisconnectedError):
        return isinstance(failure.message, str)  # else it is the part of a head that came
    if isinstance(failure, OSError) and failure.errno in _CLOSED_BY_PEER:
        return True
    # The end was noticed before all of the request was written: aiohttp tells that without an errno.
    return isinstance(failure.__cause__, ConnectionResetError)

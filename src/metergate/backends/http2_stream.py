"""One request and its answer on an HTTP/2 connection."""

import asyncio
from typing import Protocol

from h2.errors import ErrorCodes

from metergate.backends.http_client import HttpFailed

# What the server may send before the reader took it: the protocol's initial window, about 250 deltas of 250 bytes.
WINDOW_BYTES = 65_535

# The reader's taking is told in pieces of this size: more often costs a frame each time, later slows a fast answer.
_GIVEN_BACK_BYTES = WINDOW_BYTES // 2


class Carrier(Protocol):
    """What a stream needs of its connection."""

    def sendable_bytes(self, stream_id: int) -> int:
        """How much of its body may be sent now."""

    def send(self, stream_id: int, data: bytes, *, is_last: bool) -> None:
        """Send a piece of its body."""

    def give_back(self, stream_id: int, window_bytes: int) -> None:
        """Let the server send as much again."""

    def leave(self, stream_id: int) -> None:
        """Reset it, if it is still open."""


class Http2Stream:
    """A stream: its connection says what comes, one coroutine at a time waits for it. To be closed."""

    def __init__(self, carrier: Carrier, stream_id: int, *, sent_seconds: float) -> None:
        self._carrier = carrier
        self.stream_id = stream_id
        self.sent_seconds = sent_seconds  # when it was begun, of the loop's clock
        self.status = 0  # 0: no head has come
        self.content_type = ""
        self.has_ended = False  # all of the answer has come
        self._body = bytearray()  # what has come and was not taken; pieces may be as small as a byte
        self._owed_bytes = 0  # of the window, that the reader took and the server was not told of
        self._failure: HttpFailed | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- said by the connection ---

    def answered(self, status: int, content_type: str) -> None:
        """The head has come."""
        self.status, self.content_type = status, content_type
        self.wake()

    def received(self, data: bytes, window_bytes: int) -> None:
        """A piece of the body has come; it took so much of the window, padding included."""
        self._body += data
        self._give_back(window_bytes - len(data))
        self.wake()

    def ended(self) -> None:
        """The answer has come to its end."""
        self.has_ended = True
        self.wake()

    def was_reset(self, error_code: int | ErrorCodes | None) -> None:
        """The server has ended it before its time."""
        name = error_code.name if isinstance(error_code, ErrorCodes) else "an unknown code"
        if self.status:
            self.failed(HttpFailed(f"its answer broke off ({name})"))
        elif error_code == ErrorCodes.REFUSED_STREAM:
            self.failed(unseen("it refused the stream"))
        else:
            self.failed(HttpFailed(f"it reset the stream without an answer ({name})"))

    def failed(self, failure: HttpFailed) -> None:
        """Nothing more comes."""
        self._failure = self._failure or failure
        self.wake()

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- asked by the client ---

    async def send(self, body: bytes) -> None:
        """Send the body as fast as it is taken; HttpFailed if that fails.

        A server that answers otherwise than 200 meanwhile has seen enough.
        """
        sent_bytes = 0
        while not self._is_over() and self.status in (0, 200):
            allowed_bytes = self._carrier.sendable_bytes(self.stream_id)
            if allowed_bytes <= 0:
                await self._changed()
                continue
            piece = body[sent_bytes : sent_bytes + allowed_bytes]
            sent_bytes += len(piece)
            is_last = sent_bytes == len(body)
            self._carrier.send(self.stream_id, piece, is_last=is_last)
            if is_last:
                return

    async def head(self) -> None:
        """Wait for the head of the answer; HttpFailed if none comes."""
        while not self.status:
            self._raise_failure()
            await self._changed()

    async def read(self) -> bytes:
        """What has come of the body, at least a byte; nothing at its end. HttpFailed if it breaks off."""
        while not self._body:
            if self.has_ended:
                return b""
            self._raise_failure()
            await self._changed()
        data = bytes(self._body)
        self._body.clear()
        self._give_back(len(data))
        return data

    def close(self) -> None:
        """Say that no more is wanted; the server stops, and the other streams go on."""
        self._body.clear()
        self._carrier.leave(self.stream_id)

    def _is_over(self) -> bool:
        return self.has_ended or self._failure is not None

    def _give_back(self, window_bytes: int) -> None:
        self._owed_bytes += window_bytes
        if self._owed_bytes >= _GIVEN_BACK_BYTES and not self._is_over():
            self._carrier.give_back(self.stream_id, self._owed_bytes)
            self._owed_bytes = 0

    def _raise_failure(self) -> None:
        failure = self._failure
        if failure is not None:
            raise failure.again() from failure.__cause__

    async def _changed(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


def unseen(problem: str) -> HttpFailed:
    """The server says that it has not looked at the request, so that it may be sent again (RFC 9113, 8.7)."""
    return HttpFailed(problem, was_reached=False, connection_was_kept=True)

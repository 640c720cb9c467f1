"""An OpenAI-compatible server that says words, one an event, and sees when its client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

# Of one and of several tokens, of several bytes, and pairs that count less together than apart.
WORDS = (" the", " straigh", "t", " credit", "海", "洋", "，", " 😀", " counter", "balance", "\n", "ing")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
LOOKED_AT = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class WordModel:
    """What it says, and how; the test may change it between requests."""

    words: int | None = 40  # None: it never ends
    said: Sequence[str] = WORDS  # over and over
    interval_seconds: float = 0.0  # between two events
    hold_after: int | None = None  # says no more than so many words until ``go_on``
    break_after: int | None = None  # breaks the connection after so many words; 0: answers 500
    poison: bytes | None = None  # answers 500 to a request that has this in it
    reports_usage: Callable[[int], dict[str, int]] | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client went away before the end
    requests: int = 0
    sent: int = 0  # words of all requests
    port: int = 0
    _serving: "asyncio.Server | None" = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/v1"

    def text(self, words: int) -> str:
        """What it says in so many words."""
        return "".join(islice(cycle(self.said), words))

    async def until_asked(self) -> None:
        """Wait until a request has come."""
        async with asyncio.timeout(20):
            while not self.requests:
                self._moved.clear()
                await self._moved.wait()

    async def until_sent(self, count: int) -> None:
        """Wait until so many words were sent."""
        async with asyncio.timeout(20):
            while self.sent < count:
                self._moved.clear()
                await self._moved.wait()

    def kill(self) -> None:
        """Break every connection and listen no more, as the death of a process does."""
        assert self._serving is not None
        self._serving.close()
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        self._writers.add(writer)
        try:
            body = await _read_request(reader)
            if body is None:
                writer.write(LOOKED_AT)
                return
            self.requests += 1
            self._moved.set()
            is_poisoned = self.poison is not None and self.poison in body
            await self._answer(reader, writer, fails=is_poisoned or self.break_after == 0)
        except (OSError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, fails: bool) -> None:
        if fails:
            writer.write(FAILURE)
            await writer.drain()
            return
        writer.write(HEAD)
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await self._say(writer, gone)
        finally:
            gone.cancel()

    async def _say(self, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]") -> None:
        for number, word in enumerate(self._script()):
            if number == self.break_after:
                writer.transport.abort()
                return
            if number == self.hold_after:
                either: set[asyncio.Future[Any]] = {gone, asyncio.ensure_future(self.go_on.wait())}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionResetError
            writer.write(_event({"delta": {"content": word}, "index": 0, "finish_reason": None}))
            await writer.drain()
            self.sent += 1
            self._moved.set()
            await asyncio.sleep(self.interval_seconds)
        writer.write(_event({"delta": {}, "index": 0, "finish_reason": "stop"}))
        if self.reports_usage is not None:
            usage = json.dumps({"choices": [], "usage": self.reports_usage(self.words or 0)})
            writer.write(f"data: {usage}\n\n".encode())
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    def _script(self) -> Iterator[str]:
        return islice(cycle(self.said), self.words)


def _event(choice: dict[str, object]) -> bytes:
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


async def _read_request(reader: asyncio.StreamReader) -> bytes | None:
    """The body of a request; None of a gateway's look whether somebody is there."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if head.startswith("GET "):
        return None
    length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
    return await reader.readexactly(length)


@asynccontextmanager
async def speaking(model: WordModel, port: int = 0) -> AsyncIterator[WordModel]:
    """Serve the model on a port; 0: any."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        await model.serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    model.port, model._serving = server.sockets[0].getsockname()[1], server
    try:
        yield model
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

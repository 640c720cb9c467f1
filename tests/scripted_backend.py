"""A TCP server that plays bytes, for tests of what a backend may answer over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from ssl import SSLContext

# Steps of a script: bytes are sent; WAIT waits for ``go_on``; CLOSE ends the connection, RESET breaks it; HANG sends
# nothing more until the peer is gone; a function makes bytes without end until the peer is gone; a Drip is slow.
WAIT = "WAIT"
CLOSE = "CLOSE"
RESET = "RESET"
HANG = "HANG"


@dataclass(frozen=True, slots=True)
class Drip:
    """Bytes that are sent one by one, over and over, until the peer is gone."""

    data: bytes
    interval_seconds: float


Step = bytes | str | Drip | Callable[[], bytes]


def head(content_type: str = "text/event-stream", status: str = "200 OK", *, extra: str = "") -> bytes:
    """The head of an answer that ends with its connection."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{extra}Connection: close\r\n\r\n".encode()


def chunked(*pieces: bytes, ended: bool = True) -> bytes:
    """A streamed answer in HTTP chunks, so that its connection can be used again."""
    first = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return first + body + (b"0\r\n\r\n" if ended else b"")


@dataclass(frozen=True, slots=True)
class Received:
    """One request as the server saw it."""

    head: str
    body: bytes


@dataclass
class ScriptedServer:
    """Plays its script to every request, except to a gateway's look whether it is up."""

    script: Sequence[Step]
    kept_script: Sequence[Step]  # to all but the first request of a connection
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0
    is_reached: asyncio.Event = field(default_factory=asyncio.Event)  # a request has come
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # set by the test
    is_left: asyncio.Event = field(default_factory=asyncio.Event)  # the peer has closed a connection
    port: int = 0
    scheme: str = "http"
    _is_looked_at: bool = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Play to one connection."""
        self.connections += 1
        script = self.script
        try:
            while await self._receive(reader):
                if self._is_looked_at:
                    self.connections -= 1
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                for step in script:
                    await self._play(step, reader, writer)
                if _ends_connection(script):
                    return
                script = self.kept_script
            self.is_left.set()
        except OSError:
            self.is_left.set()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader) -> bool:
        try:
            text = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return False
        self._is_looked_at = text.startswith("GET ")
        if self._is_looked_at:
            return True
        length = next(int(line[15:]) for line in text.splitlines() if line.lower().startswith("content-length:"))
        self.received.append(Received(text, await reader.readexactly(length)))
        self.is_reached.set()
        return True

    async def _play(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif step == WAIT:
            await self.go_on.wait()
        elif step == RESET:
            writer.transport.abort()
            raise ConnectionResetError
        elif step == HANG:
            await reader.read(1)
            raise ConnectionResetError
        elif isinstance(step, Drip):
            for byte in cycle(step.data):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(step.interval_seconds)
        elif callable(step):
            while True:
                data = step()
                writer.write(data)
                self.sent_bytes += len(data)
                await writer.drain()


def _ends_connection(script: Sequence[Step]) -> bool:
    return any(step == CLOSE or (isinstance(step, bytes) and b"Connection: close" in step) for step in script)


@asynccontextmanager
async def scripted_server(
    *script: Step, kept: Sequence[Step] | None = None, tls: SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """A server that plays the script; it and its connections end with the context.

    ``kept`` is played to the requests that come on a connection that was used before; None: the script.
    """
    scripted = ScriptedServer(script, script if kept is None else kept, scheme="http" if tls is None else "https")
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        await scripted.serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

"""The scripts of scripted_backend.py, played over HTTP/2 by an h2 server, and what only HTTP/2 can do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from ssl import SSLContext

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame
from scripted_backend import CLOSE, HANG, RESET, WAIT, Drip, Received, Step


@dataclass(frozen=True, slots=True)
class Frames:
    """A step that only HTTP/2 has: frames made for this stream, written as they are."""

    make: Callable[[int], bytes]  # of the stream's id
    times: int = 1


def raw(frame: Frame) -> Frames:
    """A frame that is the same on every stream."""
    return Frames(lambda _: frame.serialize())


def goaway(last_stream_id: int, error_code: int = 0) -> Frames:
    """The server takes no more streams."""
    return raw(GoAwayFrame(0, last_stream_id=last_stream_id, error_code=error_code))


def reset(error_code: int) -> Frames:
    """The stream is over."""
    return Frames(lambda stream_id: RstStreamFrame(stream_id, error_code=error_code).serialize())


@dataclass
class ScriptedHttp2Server:
    """Plays its script to every request, except to a gateway's look whether it is up."""

    script: Sequence[Step | Frames]
    kept_script: Sequence[Step | Frames]  # to all but the first request of a connection
    settings: dict[SettingCodes, int]
    answers_early: bool  # as soon as the head of a request is there
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0
    resets: list[int] = field(default_factory=list)  # streams that the peer has reset
    open_streams_max: int = 0  # the most at once on a connection
    is_reached: asyncio.Event = field(default_factory=asyncio.Event)  # a request has come
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # set by the test
    is_left: asyncio.Event = field(default_factory=asyncio.Event)  # the peer has reset a stream or closed a connection
    look_status: str | None = "200"  # what a look gets; None: nothing
    looked_at: list[str] = field(default_factory=list)  # paths
    deaf_connections: int = 0  # set by the test: of so many connections, from the first, nothing more is read
    goodbyes: int = 0  # connections that the peer has ended with GOAWAY
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"


class _Connection:
    """One connection; a task plays to each of its streams."""

    def __init__(self, server: ScriptedHttp2Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self._requests: dict[int, tuple[str, bytearray]] = {}
        self._plays: dict[int, asyncio.Task[None]] = {}
        self._moved = asyncio.Event()  # a window may have grown
        self._scripts = 0
        self._number = 0  # 1 for the first connection that says something

    async def serve(self) -> None:
        self._h2.local_settings = Settings(client=False, initial_values=self._server.settings)
        self._h2.initiate_connection()
        try:
            self._flush()
            while data := await self._reader.read(65_536):
                if not self._number:
                    self._server.connections += 1
                    self._number = self._server.connections
                if self._number <= self._server.deaf_connections:
                    await self._writer.wait_closed()
                    break
                for event in self._h2.receive_data(data):
                    self._happened(event)
                self._flush()
            self._server.is_left.set()
        except (OSError, ProtocolError):
            self._server.is_left.set()
        finally:
            for play in self._plays.values():
                play.cancel()
            await asyncio.gather(*self._plays.values(), return_exceptions=True)
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    def _happened(self, event: object) -> None:
        if isinstance(event, WindowUpdated):
            self._moved.set()
        elif isinstance(event, ConnectionTerminated):
            self._server.goodbyes += 1
        elif isinstance(event, RequestReceived | DataReceived | StreamEnded | StreamReset):
            assert event.stream_id is not None
            self._happened_to_stream(event.stream_id, event)

    def _happened_to_stream(
        self, stream_id: int, event: RequestReceived | DataReceived | StreamEnded | StreamReset
    ) -> None:
        if isinstance(event, RequestReceived):
            headers = [(name.decode(), value.decode()) for name, value in event.headers or ()]
            pseudo = {name: value for name, value in headers if name.startswith(":")}
            head = f"{pseudo[':method']} {pseudo[':path']} HTTP/2\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers if not name.startswith(":"))
            self._requests[stream_id] = (f"{head}\r\n", bytearray())
            if self._server.answers_early:
                self._begin(stream_id)
        elif isinstance(event, DataReceived):
            if not self._server.answers_early:  # else nothing more is taken
                self._requests[stream_id][1].extend(event.data or b"")
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
        elif isinstance(event, StreamEnded):
            if stream_id in self._requests:
                self._begin(stream_id)
        else:
            self._server.resets.append(stream_id)
            if stream_id in self._plays:
                self._plays[stream_id].cancel()
            self._server.is_left.set()

    def _begin(self, stream_id: int) -> None:
        head, body = self._requests.pop(stream_id)
        if head.startswith("GET "):
            self._server.connections -= 1
            self._server.looked_at.append(head.split(" ")[1])
            if self._server.look_status is not None:
                self._h2.send_headers(stream_id, [(":status", self._server.look_status)], end_stream=True)
            return
        self._server.received.append(Received(head, bytes(body)))
        self._server.is_reached.set()
        script = self._server.kept_script if self._scripts else self._server.script
        self._scripts += 1
        self._plays[stream_id] = asyncio.create_task(self._play_all(stream_id, script))
        at_once = sum(not play.done() for play in self._plays.values())
        self._server.open_streams_max = max(self._server.open_streams_max, at_once)

    async def _play_all(self, stream_id: int, script: Sequence[Step | Frames]) -> None:
        has_head = False
        try:
            for step in script:
                if isinstance(step, bytes) and not has_head:
                    while step.startswith(b"HTTP/1.1 "):
                        first, _, step = step.partition(b"\r\n\r\n")
                        has_head, is_chunked = self._send_head(stream_id, first)
                        step = _dechunked(step) if is_chunked else step
                    if not has_head:
                        self._writer.write(step)
                        continue
                if isinstance(step, Frames):
                    made = step.make(stream_id)
                    for _ in range(step.times):
                        self._writer.write(made)
                        await self._writer.drain()
                else:
                    await self._play(step, stream_id)
            with suppress(ProtocolError):
                self._h2.end_stream(stream_id)
                self._flush()
        except OSError:
            self._server.is_left.set()

    def _send_head(self, stream_id: int, head: bytes) -> tuple[bool, bool]:
        """Whether it is the last head, and its body comes in HTTP/1.1's chunks."""
        first, *lines = head.decode().split("\r\n")
        status = first.split(" ")[1]
        named = [line.partition(": ") for line in lines]
        headers = [(name.lower(), value) for name, _, value in named]
        passed = [pair for pair in headers if pair[0] not in ("connection", "transfer-encoding", "keep-alive")]
        self._h2.send_headers(stream_id, [(":status", status), *passed])
        self._flush()
        return status >= "200", ("transfer-encoding", "chunked") in headers

    async def _play(self, step: Step, stream_id: int) -> None:
        if isinstance(step, bytes):
            await self._send(stream_id, step)
        elif step == WAIT:
            await self._server.go_on.wait()
        elif step == CLOSE:
            await self._writer.drain()
            self._writer.close()
        elif step == RESET:
            self._writer.transport.abort()
        elif step == HANG:
            await asyncio.Event().wait()
        elif isinstance(step, Drip):
            for byte in cycle(step.data):
                await self._send(stream_id, bytes([byte]))
                await asyncio.sleep(step.interval_seconds)
        elif callable(step):
            while True:
                data = step()
                await self._send(stream_id, data)
                self._server.sent_bytes += len(data)

    async def _send(self, stream_id: int, data: bytes) -> None:
        while data:
            allowed = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if allowed <= 0:
                self._moved.clear()
                await self._moved.wait()
                continue
            self._h2.send_data(stream_id, data[:allowed])
            data = data[allowed:]
            self._flush()
            await self._writer.drain()


def _dechunked(body: bytes) -> bytes:
    data = b""
    while body:
        length, _, rest = body.partition(b"\r\n")
        size = int(length, 16)
        data += rest[:size]
        body = rest[size + 2 :]
    return data


@asynccontextmanager
async def scripted_http2_server(
    *script: Step | Frames,
    kept: Sequence[Step | Frames] | None = None,
    tls: SSLContext | None = None,
    settings: dict[SettingCodes, int] | None = None,
    answers_early: bool = False,
) -> AsyncIterator[ScriptedHttp2Server]:
    """A server that plays the script; it and its connections end with the context.

    ``kept`` is played to the requests that come on a connection that was used before; None: the script.
    """
    scripted = ScriptedHttp2Server(script, script if kept is None else kept, settings or {}, answers_early)
    if tls is not None:
        scripted.scheme = "https"
        tls.set_alpn_protocols(["h2"])
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        await _Connection(scripted, reader, writer).serve()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        for writer in connections.values():
            writer.transport.abort()
        await asyncio.gather(*connections, return_exceptions=True)

"""One HTTP/2 connection: bytes to and from h2, and what h2 says of each stream to that stream.

Many answers share it, so none may hold it up: the connection's window is opened again at once, and only a stream's own
window is opened by its reader. A stream that is left is reset alone.
"""

import asyncio
from collections.abc import Callable, Mapping
from ssl import SSLObject
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from yarl import URL

from metergate.backends.http2_frames import FRAME_BYTES_MAX, FrameGate, FramesInvalid, GoAway
from metergate.backends.http2_heads import answer_head, request_head
from metergate.backends.http2_stream import WINDOW_BYTES, Http2Stream, unseen
from metergate.backends.http_client import CROSSING_SECONDS, HttpFailed

# One read of the socket. h2 takes about 10 us a frame: of the smallest frames this holds up the loop for some 20 ms.
_READ_BYTES = 16 * 1024

# All streams' answers may be under way at once; each of them waits for its own reader. What 16 ms bring at 64 MB/s.
_CONNECTION_WINDOW_BYTES = 1024 * 1024

# What was written and not taken by the server: bodies stop at the transport's mark (64 KiB) and a frame more, so beyond
# this are answers to frames that it sends without reading any.
_UNTAKEN_BYTES_MAX = 1024 * 1024

# Frames in a row that carry nothing of an answer, while nothing of a request is sent: a server that is well sends a few
# a second. So many hold up the loop for some 50 ms.
_EMPTY_FRAMES_MAX = 1_000

# Streams of one connection, then a new one takes its place: h2 keeps a note of each that was closed, some 100 bytes.
_STREAMS_MAX = 10_000

# A connection that was quiet for so long is asked whether it is there, along with the request.
_QUIET_SECONDS = 1.0

# One that has not said so after this long gets no more requests: its host may have gone without a word. The answers
# that are on it have their own deadlines.
_PING_SECONDS = 5.0


class Http2Connection(asyncio.BufferedProtocol):
    """One connection. ``changed`` is called when it may have room, takes no more, or is lost."""

    def __init__(self, changed: Callable[[], None], *, idle_seconds: float, number: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._idle_seconds = idle_seconds
        self.number = number  # larger for those that were made later
        self._h2 = _client_connection()
        self._gate = FrameGate()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Http2Stream] = {}  # those that the server may still send on, or that are being sent
        self._streams_begun = 0
        self._is_leaving = False  # it takes no more streams
        self._is_writing_paused = False
        self._window_owed_bytes = 0  # of the connection's window, that has come and the server was not told of
        self._empty_frames = 0
        self._heard_seconds = 0.0  # when the last bytes came
        self._ping_seconds: float | None = None  # when it was asked whether it is there, if it has not said so
        self._may_cross_its_end = False  # it was idle, and nothing came since that shows that it reads requests
        self._idle: asyncio.TimerHandle | None = None
        self._failure: HttpFailed | None = None  # why it was given up
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()

    # --- for the client -----------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the server has said how it speaks HTTP/2; HttpFailed if it does not."""
        await self._ready

    async def lost(self) -> None:
        """Wait until it is gone."""
        await asyncio.shield(self._lost)

    @property
    def is_lost(self) -> bool:
        """Whether it is gone."""
        return self._lost.done()

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is sent on it."""
        return self._transport is None or self._transport.is_closing()

    @property
    def streams_max(self) -> int:
        """How many streams the server takes at once; it may change."""
        return self._h2.remote_settings.max_concurrent_streams

    def has_room(self) -> bool:
        """Whether a stream may be begun."""
        if self._is_leaving or self.is_closing or len(self._streams) >= self.streams_max:
            return False
        return self._ping_seconds is None or self._loop.time() - self._ping_seconds < _PING_SECONDS

    def begin(self, method: str, url: URL, headers: Mapping[str, str], *, has_body: bool) -> Http2Stream:
        """Send the head of a request; it must have room."""
        now = self._loop.time()
        if not self._streams:
            self._may_cross_its_end = self._streams_begun > 0
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        stream_id = self._h2.get_next_available_stream_id()
        if self._ping_seconds is None and now - self._heard_seconds > _QUIET_SECONDS:
            self._ping_seconds = now
            self._h2.ping(b"metergat")  # before the request: what is said to it says nothing of the request
        self._h2.send_headers(stream_id, request_head(method, url, headers), end_stream=not has_body)
        stream = self._streams[stream_id] = Http2Stream(self, stream_id, sent_seconds=now)
        self._streams_begun += 1
        if self._streams_begun >= _STREAMS_MAX:
            self._is_leaving = True
        self._flush()
        return stream

    def give_up(self, failure: HttpFailed) -> None:
        """End it and all its streams at once."""
        if self._failure is None:
            self._failure = failure
        if self._transport is not None:
            self._transport.abort()
        self._fail_all(None)
        self._leave()

    # --- for its streams ----------------------------------------------------------------------------------------

    def sendable_bytes(self, stream_id: int) -> int:
        """How much of a body may be sent now."""
        if self._is_writing_paused:
            return 0
        # Whatever larger frames the server takes: after each the transport says whether it has taken it.
        return min(self._h2.local_flow_control_window(stream_id), FRAME_BYTES_MAX)

    def send(self, stream_id: int, data: bytes, *, is_last: bool) -> None:
        """Send a piece of a body."""
        self._empty_frames = 0  # it is answered with windows
        self._h2.send_data(stream_id, data, end_stream=is_last)
        self._flush()

    def give_back(self, stream_id: int, window_bytes: int) -> None:
        """Let the server send as much again on this stream."""
        if self._is_open(stream_id):
            self._h2.increment_flow_control_window(window_bytes, stream_id)
            self._flush()

    def leave(self, stream_id: int) -> None:
        """Reset the stream, if it is still open."""
        if stream_id in self._streams:
            self._h2.reset_stream(stream_id, ErrorCodes.CANCEL)
            self._flush()
            self._drop(stream_id)

    # --- for the transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected, over TLS too."""
        self._transport = cast(asyncio.Transport, transport)
        self._heard_seconds = self._loop.time()
        tls: SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.give_up(HttpFailed("it does not speak HTTP/2 over TLS", was_reached=False))
            return
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - WINDOW_BYTES)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._heard_seconds = self._loop.time()
        self._ping_seconds = None
        try:
            for piece in self._gate.feed(bytes(self._buffer[:nbytes])):
                if isinstance(piece, GoAway):
                    self._goaway(piece)
                    continue
                for event in self._h2.receive_data(piece):
                    self._happened(event)
        except (ProtocolError, FramesInvalid):
            # They quote the peer, which h2 tells its own error.
            self._flush()
            self.give_up(HttpFailed("it sent something else than HTTP/2", was_reached=self._ready.done()))
            return
        self._flush()

    def eof_received(self) -> bool:
        """The server sends nothing more."""
        return False

    def pause_writing(self) -> None:
        """The server does not take what is sent to it."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """It takes it again."""
        self._is_writing_paused = False
        self._wake_all()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._is_leaving = True
        if self._idle is not None:
            self._idle.cancel()
        self._fail_all(exc)
        if not self._ready.done():
            failure = self._failure or HttpFailed("it closed the connection without speaking HTTP/2", was_reached=False)
            self._ready.set_exception(failure)
            self._ready.exception()  # nobody may wait for it any more
        self._lost.set_result(None)
        self._changed()

    # --- what happens -------------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._received(event)
            return
        self._empty_frames += 1
        if self._empty_frames > _EMPTY_FRAMES_MAX:
            raise FramesInvalid
        if isinstance(event, RemoteSettingsChanged):
            if not self._ready.done():
                self._ready.set_result(None)
            self._wake_all()  # windows may have grown
            self._changed()
        elif isinstance(event, WindowUpdated):
            self._may_cross_its_end = False
            if event.stream_id:
                self._wake(event.stream_id)
            else:
                self._wake_all()
        elif isinstance(
            event, ResponseReceived | InformationalResponseReceived | TrailersReceived | StreamEnded | StreamReset
        ):
            self._happened_to_stream(event)

    def _happened_to_stream(
        self,
        event: ResponseReceived | InformationalResponseReceived | TrailersReceived | StreamEnded | StreamReset,
    ) -> None:
        self._may_cross_its_end = False
        stream_id = event.stream_id
        stream = self._streams.get(stream_id or 0)
        if stream is None or stream_id is None:
            return
        if isinstance(event, ResponseReceived):
            self._empty_frames = 0
            self._answered(stream, dict(event.headers or ()))
        elif isinstance(event, StreamEnded):
            stream.ended()
            # What the server has not read of the request, it will not: then the stream is still open on this side.
            if not self._is_open(stream_id):
                self._drop(stream_id)
        elif isinstance(event, StreamReset):
            stream.was_reset(event.error_code)
            self._drop(stream_id)

    def _answered(self, stream: Http2Stream, headers: Mapping[bytes, bytes]) -> None:
        head = answer_head(headers)
        if head is None:
            stream.failed(HttpFailed("it sent something else than HTTP/2"))
        else:
            stream.answered(*head)

    def _received(self, event: DataReceived) -> None:
        self._may_cross_its_end = False
        window_bytes = event.flow_controlled_length or 0
        self._window_owed_bytes += window_bytes
        if self._window_owed_bytes >= _CONNECTION_WINDOW_BYTES // 2:
            self._h2.increment_flow_control_window(self._window_owed_bytes)
            self._window_owed_bytes = 0
        self._empty_frames = 0 if event.data else self._empty_frames + 1
        if self._empty_frames > _EMPTY_FRAMES_MAX:
            raise FramesInvalid
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            stream.received(event.data or b"", window_bytes)

    def _goaway(self, goaway: GoAway) -> None:
        for stream_id in [stream_id for stream_id in self._streams if stream_id > goaway.last_stream_id]:
            self._streams[stream_id].failed(unseen("it said goodbye before it looked at the request"))
            del self._streams[stream_id]
        self._leave()

    def _fail_all(self, exc: Exception | None) -> None:
        for stream in self._streams.values():
            stream.failed(self._loss(stream, exc))
        self._streams.clear()

    def _loss(self, stream: Http2Stream, exc: Exception | None) -> HttpFailed:
        """What the loss of the connection is for a stream."""
        if self._failure is not None:
            return self._failure
        if stream.status:
            failure = HttpFailed("its answer broke off")
        else:
            is_soon = self._loop.time() - stream.sent_seconds < CROSSING_SECONDS
            was_kept = self._may_cross_its_end and is_soon and not self._gate.is_within_frame
            failure = HttpFailed("it closed the connection without an answer", connection_was_kept=was_kept)
        if isinstance(exc, OSError):
            failure.__cause__ = exc
        return failure

    # --- its end ------------------------------------------------------------------------------------------------

    def _drop(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if not self._streams:
            if self._is_leaving:
                self._close()
            else:
                self._idle = self._loop.call_later(self._idle_seconds, self._close)
        self._changed()

    def _is_open(self, stream_id: int) -> bool:
        """Whether either side may still send on it, by all that has come."""
        stream = self._h2.streams.get(stream_id)
        return stream is not None and not stream.closed

    def _leave(self) -> None:
        """Take no more streams, and close after the last."""
        self._is_leaving = True
        if not self._streams:
            self._close()
        self._changed()

    def _close(self) -> None:
        self._is_leaving = True
        if self._transport is not None and not self.is_closing:
            self._h2.close_connection()
            self._flush()
            self._transport.close()
        self._changed()

    def _wake(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.wake()

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.wake()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        transport = self._transport
        if not data or transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > _UNTAKEN_BYTES_MAX:
            self.give_up(HttpFailed("it does not read what it is sent"))


def _client_connection() -> H2Connection:
    # What is not checked is not used: of an answer's headers two are read.
    connection = H2Connection(H2Configuration(client_side=True, validate_inbound_headers=False, header_encoding=None))
    connection.local_settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.MAX_CONCURRENT_STREAMS: 1,  # of the server's; with 0 h2 ends on what crosses a reset
            SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
        },
    )
    return connection

"""Bytes of a hostile or broken server, and of one that says goodbye: whatever they are cut into."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from h2.connection import H2Connection
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from metergate.backends.http2_connection import Http2Connection
from metergate.backends.http2_frames import FRAME_BYTES_MAX, FrameGate, FramesInvalid, GoAway
from metergate.backends.http_client import HttpFailed

PING = PingFrame(0, opaque_data=b"12345678").serialize()
DATA = DataFrame(1, data=b"x" * 300).serialize()


def goodbye(last_stream_id: int, text: bytes = b"") -> bytes:
    return GoAwayFrame(0, last_stream_id=last_stream_id, error_code=11, additional_data=text).serialize()


def passed(data: bytes, cuts: Sequence[int]) -> tuple[bytes, list[tuple[int, GoAway]]]:
    """What the gate passes on, and each GOAWAY with the bytes before it."""
    gate, through, goaways = FrameGate(), b"", []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begins, ends in pairwise(places):
        for piece in gate.feed(data[begins:ends]):
            if isinstance(piece, GoAway):
                goaways.append((len(through), piece))
            else:
                through += piece
    assert not gate.is_within_frame
    return through, goaways


@given(
    frames=st.lists(st.sampled_from([PING, DATA, goodbye(7), goodbye(3, b"too many cats"), b"\0\0\0\0\0\0\0\0\1"])),
    cuts=st.lists(st.integers(min_value=0, max_value=5_000)),
)
def test_goodbyes_are_taken_out_where_they_stand_and_all_else_passes(frames: list[bytes], cuts: list[int]) -> None:
    through, goaways = b"", []
    for frame in frames:
        if frame[3] == 7:
            goaways.append((len(through), GoAway(last_stream_id=7 if len(frame) == 17 else 3, error_code=11)))
        else:
            through += frame
    assert passed(b"".join(frames), cuts) == (through, goaways)


def test_a_frame_that_is_longer_than_allowed_is_refused_by_its_head() -> None:
    gate = FrameGate()
    assert list(gate.feed(PING)) == [PING]
    with pytest.raises(FramesInvalid):
        list(gate.feed((FRAME_BYTES_MAX + 1).to_bytes(3, "big") + b"\0\0\0\0\0\1"))


class Wire(asyncio.Transport):
    """Takes what is written and keeps none of it."""

    def __init__(self) -> None:
        super().__init__()
        self._is_closing = False
        self.untaken_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_closing

    def get_write_buffer_size(self) -> int:
        return self.untaken_bytes

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True


FRAME = st.builds(
    lambda kind, flags, stream_id, payload: (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload
    ),
    kind=st.integers(min_value=0, max_value=12),
    flags=st.integers(min_value=0, max_value=255),
    stream_id=st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    payload=st.one_of(
        st.binary(max_size=40),
        st.just(b"\x88\x5f\x13text/event-stream"),  # a head, in HPACK
        st.builds(bytes.__mul__, st.just(b"\0"), st.integers(min_value=0, max_value=30)),
    ),
)


def receive(connection: Http2Connection, data: bytes) -> None:
    buffer = connection.get_buffer(-1)
    buffer[: len(data)] = data
    connection.buffer_updated(len(data))


async def test_a_body_is_sent_in_small_pieces_though_the_server_takes_large_ones() -> None:
    """Else one write would be beyond what may lie untaken."""
    connection = Http2Connection(lambda: None, idle_seconds=60.0, number=1)
    connection.connection_made(Wire())
    large = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**24, SettingsFrame.MAX_FRAME_SIZE: 2**24 - 1}
    receive(connection, SettingsFrame(0, settings=large).serialize())
    receive(connection, WindowUpdateFrame(0, window_increment=2**24).serialize())
    stream = connection.begin("POST", URL("http://h/v1"), {}, has_body=True)
    assert connection.sendable_bytes(stream.stream_id) == FRAME_BYTES_MAX
    connection.connection_lost(None)


async def test_what_a_server_does_not_read_does_not_pile_up() -> None:
    connection, wire = Http2Connection(lambda: None, idle_seconds=60.0, number=1), Wire()
    connection.connection_made(wire)
    receive(connection, SettingsFrame(0).serialize())
    stream = connection.begin("POST", URL("http://h/v1"), {}, has_body=True)
    wire.untaken_bytes = 2 * 1024 * 1024
    receive(connection, PING)  # which is answered
    assert wire.is_closing()
    with pytest.raises(HttpFailed, match="it does not read what it is sent"):
        await stream.head()
    connection.connection_lost(None)


@settings(deadline=None, max_examples=300)
@given(data=st.one_of(st.lists(FRAME, max_size=12).map(b"".join), st.binary(max_size=300)))
def test_whatever_a_server_sends_ends_in_an_answer_or_a_typed_failure(data: bytes) -> None:
    async def meet() -> None:
        connection = Http2Connection(lambda: None, idle_seconds=60.0, number=1)
        wire = Wire()
        connection.connection_made(wire)
        receive(connection, SettingsFrame(0).serialize())
        await connection.ready()
        left, read = (connection.begin("POST", URL("http://h/v1"), {}, has_body=True) for _ in range(2))
        receive(connection, data)
        left.close()
        connection.connection_lost(None)
        with suppress(HttpFailed):
            while await read.read():
                pass
        assert connection.is_lost

    asyncio.run(meet())


def test_h2_alone_would_end_the_streams_that_a_goodbye_leaves() -> None:
    """Why goodbyes are taken out. When this fails, the gate may go."""
    client = H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/")])
    client.receive_data(SettingsFrame(0).serialize() + goodbye(1))
    with pytest.raises(Exception, match="RECV_HEADERS in state"):
        client.receive_data(b"\0\0\1\1\4\0\0\0\1\x88")

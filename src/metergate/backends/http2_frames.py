"""HTTP/2 frames as they come off the wire, before h2 sees them. Pure: no I/O, no clock.

Two things h2 does not do. It takes a connection for closed once GOAWAY came, though the streams that GOAWAY leaves go
on (RFC 9113, 6.8): those frames are taken out here. And it buffers a frame to its end before it looks at its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_HEADER_BYTES = 9
_GOAWAY = 0x7

# What a client that says nothing else allows (RFC 9113, 6.5.2). A delta is a hundredth of it.
FRAME_BYTES_MAX = 16_384

_GOAWAY_BYTES_MIN = 8  # the last stream and the error code; then what is meant for people


class FramesInvalid(Exception):
    """The bytes are no frames that this client allows; the message quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server takes no more streams on this connection."""

    last_stream_id: int  # what came after it, the server has not looked at
    error_code: int  # 0: nothing is wrong


class FrameGate:
    """Passes on what h2 is to see of one connection. After FramesInvalid it is finished."""

    def __init__(self) -> None:
        self._held = b""  # a frame header, or a GOAWAY, whose end has not come
        self._passing_bytes = 0  # of the frame that is passed on, those that have not come

    @property
    def is_within_frame(self) -> bool:
        """Whether the end of a frame that has begun has not come."""
        return bool(self._held) or self._passing_bytes > 0

    def feed(self, data: bytes) -> Iterator[bytes | GoAway]:
        """What h2 is to see, in order, and the GOAWAYs between; consume it all before the next piece."""
        if self._held:
            data, self._held = self._held + data, b""
        begins = 0  # of what is not passed on yet
        at = min(self._passing_bytes, len(data))
        self._passing_bytes -= at
        while len(data) - at >= _HEADER_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            if length > FRAME_BYTES_MAX:
                raise FramesInvalid
            ends = at + _HEADER_BYTES + length
            if data[at + 3] == _GOAWAY:
                if at > begins:
                    yield data[begins:at]
                begins = at
                if ends > len(data):
                    break
                yield _goaway(data[at + _HEADER_BYTES : ends])
                begins = ends
            if ends > len(data):
                self._passing_bytes = ends - len(data)
                at = len(data)
            else:
                at = ends
        self._held = data[at:]
        if at > begins:
            yield data[begins:at]


def _goaway(payload: bytes) -> GoAway:
    if len(payload) < _GOAWAY_BYTES_MIN:
        raise FramesInvalid
    last_stream_id = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
    return GoAway(last_stream_id, int.from_bytes(payload[4:8], "big"))

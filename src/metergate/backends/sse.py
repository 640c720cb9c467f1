"""Server-sent events out of bytes, as they come: however the bytes are cut, the events are the same.

Of each event its data is kept: OpenAI-compatible backends say nothing in the other fields. Pure: no I/O, no clock.
"""

from collections.abc import Iterator

# An event holds at most one whole answer: 131,072 tokens of 4 bytes, doubled by JSON's escapes. Real ones are a
# thousand times smaller.
EVENT_BYTES_MAX = 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventStreamInvalid(Exception):
    """The bytes are no stream of events; the message says why and quotes nothing of it."""


class EventStreamDecoder:
    """Decodes one stream. After EventStreamInvalid it is finished.

    Half an event at the end of the stream is no event: it is never returned. At most ``event_bytes_max`` bytes are held
    besides the chunk that is being decoded.
    """

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._line = bytearray()  # the line whose end has not come; it grows in place, so that tiny chunks stay linear
        self._data_lines: list[bytes] = []  # of the event whose end has not come
        self._data_bytes = 0  # of those lines, field names and line ends included
        self._after_carriage_return = False  # a line feed that comes next ends no second line
        self._at_start = True  # a byte order mark may come

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of every event that ends in this chunk; consume it all before the next chunk.

        EventStreamInvalid, after the events before it, if an event is too large or its data is no UTF-8.
        """
        for line in self._lines(chunk):
            if not line:
                if self._data_lines:
                    yield self._take_event()
                continue
            if self._data_bytes + len(line) > self._event_bytes_max:
                raise self._too_large()
            if line.startswith(b"data:"):
                self._data_lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(line) + 1
            elif line == b"data":
                self._data_lines.append(b"")
                self._data_bytes += len(line) + 1
            # Comments, which keep the connection alive, and other fields say nothing.
        if self._data_bytes + len(self._line) > self._event_bytes_max:
            raise self._too_large()

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, without their ends: CRLF, LF or CR."""
        if not chunk:
            return []
        if self._after_carriage_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_carriage_return = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        self._line += rest
        if lines and self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        return lines

    def _take_event(self) -> str:
        data = self._data_lines[0] if len(self._data_lines) == 1 else b"\n".join(self._data_lines)
        self._data_lines.clear()
        self._data_bytes = 0
        try:
            return data.decode()
        except UnicodeDecodeError:
            # The original error would carry the data, which is a completion.
            raise EventStreamInvalid("it sent an event that is not UTF-8") from None

    def _too_large(self) -> EventStreamInvalid:
        return EventStreamInvalid(f"it sent an event of more than {self._event_bytes_max} bytes")

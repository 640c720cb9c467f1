"""Server-sent events: the same events, however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.backends.sse import EventStreamDecoder, EventStreamInvalid


def decode(*chunks: bytes, event_bytes_max: int = 1024) -> tuple[list[str], str | None]:
    """The events, and the problem that ended them if there was one."""
    decoder = EventStreamDecoder(event_bytes_max=event_bytes_max)
    events: list[str] = []
    try:
        for chunk in chunks:
            events.extend(decoder.feed(chunk))  # like a for loop, it keeps what came before an error
    except EventStreamInvalid as exc:
        return events, str(exc)
    return events, None


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_of_the_three_ways(line_end: bytes) -> None:
    stream = b"data: one\n\ndata:two\n\n".replace(b"\n", line_end)
    assert decode(stream) == (["one", "two"], None)
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == (["one", "two"], None)


def test_a_line_end_that_is_cut_in_two_is_one_line_end() -> None:
    assert decode(b"data: a\r", b"\ndata: b\r", b"", b"\n\r\n") == (["a\nb"], None)


def test_several_data_lines_are_joined_and_only_one_blank_is_dropped() -> None:
    assert decode(b"data: a\ndata:  b\ndata\ndata:\n\n") == (["a\n b\n\n"], None)


def test_comments_and_other_fields_say_nothing() -> None:
    assert decode(b": keep-alive\n\n:\n\nevent: x\nid: 1\nretry: 5\ndata: a\ndatax: b\n\n") == (["a"], None)


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    mark = b"\xef\xbb\xbf"
    assert decode(mark[:1], mark[1:] + b"data: a\n\n" + mark + b"data: b\n\n") == (["a"], None)


def test_half_an_event_at_the_end_is_no_event() -> None:
    assert decode(b"data: a\n\ndata: b\n") == (["a"], None)
    assert decode(b"data: a\n\ndata: b") == (["a"], None)


def test_a_character_may_be_cut_between_chunks() -> None:
    stream = "data: 你好\U0001f600\n\n".encode()
    for cut in range(len(stream)):
        assert decode(stream[:cut], stream[cut:]) == (["你好\U0001f600"], None)


def test_data_that_is_not_utf8_is_an_error_after_the_events_before_it() -> None:
    assert decode(b"data: a\n\ndata: \xe4\xbd\n\ndata: b\n\n") == (["a"], "it sent an event that is not UTF-8")


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 1100 + b"\n\n",
        b"data: x\n" * 140 + b"\n",
        b"data\n" * 300 + b"\n",
        b": " + b"x" * 1100 + b"\n\n",
        b"x" * 1100,
    ],
    ids=["one line", "many lines", "many empty lines", "a comment", "no line end"],
)
def test_an_event_above_the_limit_is_an_error_at_once(stream: bytes) -> None:
    problem = "it sent an event of more than 1024 bytes"
    assert decode(b"data: a\n\n" + stream) == (["a"], problem)
    assert decode(b"data: a\n\n", *(stream[i : i + 7] for i in range(0, len(stream), 7))) == (["a"], problem)


def test_an_event_of_the_limit_passes() -> None:
    text = "x" * (1024 - len("data: "))
    assert decode(f"data: {text}\n\n".encode()) == ([text], None)


def test_events_of_a_chunk_do_not_add_up_to_the_limit() -> None:
    assert decode(b"data: 0123456789\n\n" * 500) == (["0123456789"] * 500, None)


_syntax = (
    b"data:",
    b"data: ",
    b"data",
    b":",
    b"event: x",
    b"\n",
    b"\r\n",
    b"\r",
    b"\n\n",
    b" ",
    b"{}",
    b"\xef\xbb\xbf",
)
_text = ("你".encode(), "\U0001f600".encode(), b"\xff", b"\xe4", b"x" * 30)
_pieces = st.sampled_from(_syntax + _text)


@given(stream=st.lists(_pieces, max_size=40).map(b"".join), data=st.data())
def test_any_cutting_of_a_stream_decodes_to_the_same(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = decode(stream, event_bytes_max=64)
    assert decode(*chunks, event_bytes_max=64) == whole
    assert decode(*(stream[i : i + 1] for i in range(len(stream))), event_bytes_max=64) == whole

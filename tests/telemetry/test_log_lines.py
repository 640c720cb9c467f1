"""What is written to stderr: whole lines, bounded, that nobody can forge and nobody waits for."""

import asyncio
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from metergate.core.errors import RequestIdConflict, RequestInvalid, Violation
from metergate.telemetry.log_lines import LineWriter, formatter, log_lines, report_loop_error
from metergate.telemetry.printable import printable

logger = logging.getLogger("metergate.test")

FORGED = 'x"}\n{"level":"error","event":"forged"}\r\x1b[2J\x1b]0;owned\x07\x9b31m\u2028\u202e'

SECRET = "zanzibar"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


def written(reading: int) -> list[str]:
    """The lines that came."""
    content = os.read(reading, 1_000_000).decode()
    assert content.endswith("\n")
    return content[:-1].split("\n")


def as_json(pipe: tuple[int, int], level: Any = "info") -> Any:
    return log_lines("json", level, pipe[1])


def test_a_line_is_json_with_its_time_level_logger_and_fields(pipe: tuple[int, int]) -> None:
    with as_json(pipe):
        logger.info("request %s", "ended", extra={"charge": "c-1", "tokens": {"PROMPT": 3}, "attempts": 2})
    [line] = [json.loads(line) for line in written(pipe[0])]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "metergate.test",
        "event": "request ended",
        "charge": "c-1",
        "tokens": {"PROMPT": 3},
        "attempts": 2,
    }


def test_only_named_fields_are_written(pipe: tuple[int, int]) -> None:
    with as_json(pipe):
        logger.info("hello", extra={"prompt": "zanzibar", "request_id": "r-1"})
    assert "zanzibar" not in written(pipe[0])[0]


@pytest.mark.parametrize(
    "text", ["a" * 513, "half a pair: \ud83d", "a line\nand another", 'a "quoted" one', "\x9b31m", "\u202e"]
)
def test_what_cannot_be_shown_is_escaped_in_a_field(pipe: tuple[int, int], text: str) -> None:
    with as_json(pipe):
        logger.info("hello", extra={"request_id": text})
    [line] = [json.loads(line) for line in written(pipe[0])]
    assert line["request_id"] == printable(text)


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_foreign_text_cannot_forge_a_line_nor_move_the_cursor(pipe: tuple[int, int], wanted: Any) -> None:
    with log_lines(wanted, "info", pipe[1]):
        logger.info("about %s", FORGED, extra={"request_id": FORGED, "problem": FORGED})
    [line] = written(pipe[0])
    assert line.isprintable(), line
    if wanted == "json":
        assert json.loads(line)["level"] == "info"


def test_a_lines_length_is_bounded(pipe: tuple[int, int]) -> None:
    with as_json(pipe):
        logger.info("a" * 100_000, extra={"request_id": "\n" * 100_000, "problem": "海" * 100_000})
    [line] = written(pipe[0])
    assert len(line.encode()) < 8_000


def test_an_errors_place_is_written_but_not_its_text(pipe: tuple[int, int]) -> None:
    with as_json(pipe):
        try:
            raise ValueError(SECRET)
        except ValueError as exc:
            try:
                raise RequestInvalid(Violation("field", SECRET)) from exc
            except RequestInvalid:
                logger.exception("it failed")
        logger.error("ours", exc_info=RequestIdConflict(request_id="r\n1"))
    lines = written(pipe[0])
    assert SECRET not in "".join(lines)
    failed, ours = (json.loads(line)["exception"] for line in lines)
    assert failed.startswith("RequestInvalid\n")
    assert "caused by ValueError" in failed
    assert "test_log_lines.py" in failed
    assert "The request id r\\n1 was used" in ours


async def test_an_error_that_nothing_waited_for_is_written_without_its_text(pipe: tuple[int, int]) -> None:
    with as_json(pipe):
        context = {"message": "Exception in callback print('zanzibar')", "exception": ValueError("quetzal")}
        report_loop_error(asyncio.get_running_loop(), context)
    [line] = written(pipe[0])
    assert json.loads(line)["exception"].startswith("ValueError")
    assert "zanzibar" not in line
    assert "quetzal" not in line


def test_libraries_are_heard_from_warnings_on_and_we_from_the_level_on(pipe: tuple[int, int]) -> None:
    with as_json(pipe, "debug"):
        logger.debug("ours")
        logging.getLogger("aiohttp.client").info("theirs, quietly")
        logging.getLogger("aiohttp.client").warning("theirs")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning", stacklevel=1)
    events = [json.loads(line)["event"] for line in written(pipe[0])]
    assert events[:2] == ["ours", "theirs"]
    assert "a warning" in events[2]
    assert len(events) == 3


def test_a_reader_that_does_not_read_costs_lines_and_never_time(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing, lines_max=8)
    writer.setFormatter(formatter("json", is_terminal=False))
    record = logging.makeLogRecord({"msg": "x" * 500, "levelname": "INFO"})
    count = 2_000  # a pipe holds 64 KiB
    for _ in range(count):
        writer.handle(record)
    kept, told = 0, 0
    rest = b""
    while kept + told < count:
        *whole, rest = (rest + os.read(reading, 65_536)).split(b"\n")
        for line in whole:
            dropped = re.fullmatch(r"(\d+) log lines were dropped: .*", json.loads(line)["event"])
            kept, told = (kept, told + int(dropped[1])) if dropped else (kept + 1, told)
    assert kept + told == count
    assert 8 <= kept < 1_000
    writer.close()


def test_a_reader_that_never_reads_does_not_keep_the_process_from_ending(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], lines_max=1)
    writer.setFormatter(formatter("json", is_terminal=False))
    for _ in range(500):
        writer.handle(logging.makeLogRecord({"msg": "x" * 500, "levelname": "INFO"}))
    writer.close()
    # What it still wants to write, so that its thread ends before the pipe is closed.
    os.set_blocking(pipe[0], False)
    while writer._thread.is_alive():
        try:
            os.read(pipe[0], 65_536)
        except BlockingIOError:
            writer._lines.put(None)
            writer._thread.join(0.05)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with log_lines("json", "info", writing):
        logger.info("to nobody")
    os.close(writing)


def test_a_line_that_cannot_be_made_touches_nobody(pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    writer = LineWriter(pipe[1])
    writer.setFormatter(formatter("json", is_terminal=False))
    writer.handle(logging.makeLogRecord({"msg": "%d of them", "args": ("zanzibar",), "levelname": "INFO"}))
    writer.handle(logging.makeLogRecord({"msg": "next", "levelname": "INFO"}))
    writer.close()
    events = [json.loads(line)["event"] for line in written(pipe[0])]
    assert events == ["next", "1 log lines were dropped: nobody read them in time"]
    assert capfd.readouterr() == ("", "")


def test_colours_are_for_terminals_only(pipe: tuple[int, int]) -> None:
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "levelno": 20, "charge": "c-1"})
    on_terminal = formatter("auto", is_terminal=True).format(record)
    assert "\x1b[" in on_terminal
    assert "hello" in on_terminal
    assert json.loads(formatter("auto", is_terminal=False).format(record))["charge"] == "c-1"
    assert "\x1b[" not in formatter("text", is_terminal=False).format(record)


@pytest.mark.parametrize("text", ["", "request-1", "海 😀", "a" * 512])
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_line_says_what_it_said_when_it_was_logged(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.setFormatter(formatter("json", is_terminal=False))
    changing = ["before"]
    writer.handle(logging.makeLogRecord({"msg": "%s", "args": (changing,), "levelname": "INFO"}))
    writer.handle(logging.makeLogRecord({"msg": changing, "levelname": "INFO"}))
    changing[0] = "after"
    writer.close()
    assert [json.loads(line)["event"] for line in written(pipe[0])] == ["['before']", "['before']"]


def test_a_record_that_no_line_can_be_made_of_touches_nobody(
    pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    writer = LineWriter(pipe[1])
    writer.setFormatter(formatter("json", is_terminal=False))
    writer.handle(logging.makeLogRecord({"msg": "odd", "levelname": "INFO", "charge": object()}))
    writer.handle(logging.makeLogRecord({"msg": "next", "levelname": "INFO"}))
    writer.close()
    events = [json.loads(line)["event"] for line in written(pipe[0])]
    assert events == ["next", "1 log lines were dropped: nobody read them in time"]
    assert capfd.readouterr() == ("", "")

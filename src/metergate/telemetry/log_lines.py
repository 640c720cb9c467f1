"""How log lines look, and the thread that writes them.

Every line of the process goes through here, those of libraries too, and each is one line: JSON for machines, coloured
text for people. Nothing but what is named in ``FIELDS`` becomes a field, and of an error's own text nothing is shown
(L11). A request never waits for the reader of the log.
"""

import asyncio
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from metergate.telemetry.failures import describe
from metergate.telemetry.printable import CHARACTERS_MAX, printable

logger = logging.getLogger(__name__)

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]

# What a line may say besides its time, level, logger and event.
FIELDS = frozenset(
    {
        *("verb", "request_id", "subscriber", "authorization", "app", "channel", "model", "trace_id"),
        *("backend", "attempts", "problem", "method", "peer"),
        *("outcome", "close_cause", "finish_reason", "reservation", "charge", "charged_microcredits", "tokens"),
        *("deliveries", "seconds", "first_token_seconds"),
        "exception",  # of ``failures.describe`` only
    }
)

# Lines that wait for the reader of stderr: a second of the busiest gateway; at some 2 kB a record, 16 MB.
LINES_MAX = 8_192

# Lines that come within this time are made and written together: woken for each of a busy gateway's lines, the thread
# would keep taking the interpreter's lock from the requests, and a line alone, between other work, takes twice the time
# to make. Short enough for a person who watches.
GATHERED_SECONDS = 0.05

# A traceback is cut beyond this: 30 frames of two lines each fit.
_EXCEPTION_CHARACTERS_MAX = 8_192

# When the process ends, a reader that does not read is not waited for.
_CLOSE_SECONDS_MAX = 1.0


class LineWriter(logging.Handler):
    """Makes lines of records and writes them to a file descriptor, in a thread of its own.

    While ``lines_max`` lines wait, because nobody reads the pipe or the disk is slow, further lines are dropped; how
    many is the first thing that is written when it goes on.
    """

    def __init__(self, descriptor: int, *, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines_max = lines_max
        # Of records, and of lines already made; a queue.Queue costs ten times its time.
        self._lines: queue.SimpleQueue[logging.LogRecord | bytes | None] = queue.SimpleQueue()
        self._dropped = 0  # in all; only changed under the handler's lock
        self._told = 0  # how many of them the log has told of; only the thread changes it
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or drop it."""
        if self._lines.qsize() >= self._lines_max:
            self._dropped += 1
            return
        try:
            self._lines.put(self._kept(record))
        except Exception:  # noqa: BLE001 - a line that cannot be made must not touch who logs it
            self.handleError(record)

    def _kept(self, record: logging.LogRecord) -> logging.LogRecord | bytes:
        """What the thread makes a line of, with nothing in it that may change until then."""
        if record.exc_info:
            return self._line(record)  # its frames must not be freed in another thread than theirs
        if record.args or not isinstance(record.msg, str):
            record.msg, record.args = record.getMessage(), None
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - named by logging
        """Count a line that could not be made; logging's own way is to print it with all its arguments."""
        self._dropped += 1

    def close(self) -> None:
        """Write what is queued, unless that takes too long, and stop."""
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(_CLOSE_SECONDS_MAX)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _run(self) -> None:
        is_open = True
        while is_open:
            waiting = [self._lines.get()]
            time.sleep(GATHERED_SECONDS)
            with suppress(queue.Empty):
                while True:
                    waiting.append(self._lines.get_nowait())
            is_open = None not in waiting
            self._write(b"".join(self._made(each) for each in waiting if each is not None))
            self._tell_dropped()

    def _made(self, kept: logging.LogRecord | bytes) -> bytes:
        if isinstance(kept, bytes):
            return kept
        try:
            return self._line(kept)
        except Exception:  # noqa: BLE001 - as in ``emit``
            self.acquire()
            self.handleError(kept)
            self.release()
            return b""

    def _tell_dropped(self) -> None:
        dropped = self._dropped - self._told
        if not dropped:
            return
        self._told += dropped
        text = f"{dropped} log lines were dropped: nobody read them in time"
        self._write(self._line(logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None)))

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    select.select([], [self._descriptor], [])
        except OSError:
            return  # the reader is gone: nobody is left to be told


@contextmanager
def log_lines(wanted: Format, level: Level, descriptor: int | None = None) -> Iterator[None]:
    """Write the log of this process to stderr (or ``descriptor``) until the end of the block.

    ``level`` is that of Metergate's own lines; of libraries only warnings and errors are shown, because their debug
    lines may quote what they carry.
    """
    target = sys.stderr.fileno() if descriptor is None else descriptor
    writer = LineWriter(target)
    writer.setFormatter(formatter(wanted, is_terminal=os.isatty(target)))
    root, ours = logging.getLogger(), logging.getLogger("metergate")
    before = root.level, ours.level
    root.addHandler(writer)
    root.setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    try:
        with _records_without_what_no_line_shows():
            yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(writer)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        writer.close()


@contextmanager
def _records_without_what_no_line_shows() -> Iterator[None]:
    """Spare each record the look-up of its thread, process and caller: half of what making it costs.

    As "Optimization" of https://docs.python.org/3/howto/logging.html has it.
    """
    before = logging.logThreads, logging.logProcesses, logging.logMultiprocessing, logging._srcfile  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way
    try:
        yield
    finally:
        logging.logThreads, logging.logProcesses, logging.logMultiprocessing, logging._srcfile = before  # noqa: SLF001


def formatter(wanted: Format, *, is_terminal: bool) -> logging.Formatter:
    """Make every record one line: JSON, or text with colours for a terminal."""
    if wanted == "json" or (wanted == "auto" and not is_terminal):
        return _JsonFormatter()
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=False),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _with_fields,
            _made_printable,
            _with_error_described,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(colors=is_terminal, sort_keys=False, pad_event_to=0),
        ],
    )


class _JsonFormatter(logging.Formatter):
    """Makes what structlog makes for people, for machines: a quarter of its time, and every request has a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        time_of_day = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
        event: EventDict = {
            "timestamp": f"{time_of_day.isoformat(timespec='microseconds')}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        event.update({name: value for name, value in vars(record).items() if name in FIELDS})
        if record.exc_info or "exception" in event:
            event["exc_info"] = record.exc_info
            event = _with_error_described(None, "", event)
        with suppress(UnicodeEncodeError):
            line = msgspec.json.encode(event).decode()
            # Nearly every line: nothing was escaped in it, nothing has to be, and no value of it is cut.
            if "\\" not in line and line.isprintable() and not any(map(_is_long, event.values())):
                return line
        return msgspec.json.encode(_made_printable(None, "", event)).decode()


def report_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no task waited for; asyncio's own way shows the error's text and the arguments of calls."""
    logger.error("an error that nothing waited for", exc_info=context.get("exception"))


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > CHARACTERS_MAX


def _with_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # In the order in which they were given; structlog's own way to pick fields forgets it.
    event.update({name: value for name, value in vars(event["_record"]).items() if name in FIELDS})
    return event


def _made_printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":
            event[name] = printable(value)
    return event


def _with_error_described(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    exc_info = event.pop("exc_info", None)
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(error, BaseException):
        event["exception"] = describe(error)
    if "exception" in event:
        event["exception"] = event["exception"][-_EXCEPTION_CHARACTERS_MAX:]
    return event

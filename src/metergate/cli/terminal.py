"""What people read. Results go to stdout and all else to stderr, so that ``$(...)`` gets results only."""

import typer
from rich.console import Console
from rich.progress import Progress

from metergate.core.credits import format_credits
from metergate.core.times import datetime_of

# Wider than any row, and less than what would be wrong to allocate: a line that no terminal shows is never broken.
WIDTH_MAX = 100_000


def output() -> Console:
    """The console of results."""
    return _unbroken(Console())


def errors() -> Console:
    """The console of all else."""
    return _unbroken(Console(stderr=True))


def _unbroken(console: Console) -> Console:
    """The console, as wide as needed where it is no terminal, so that a program finds a row on one line."""
    return console if console.is_terminal else Console(stderr=console.stderr, width=WIDTH_MAX)


def showing_progress() -> Progress:
    """Bars on stderr that are gone when they are done; nothing where nobody looks."""
    terminal = errors()
    return Progress(console=terminal, transient=True, disable=not terminal.is_terminal)


def explain(text: str) -> None:
    """Write a line for people to stderr."""
    typer.echo(text, err=True)


def credits_of(amount_microcredits: int) -> str:
    """An amount with its unit."""
    return f"{format_credits(amount_microcredits)} credits"


def time_of(time_us: int | None) -> str:
    """A time in the reader's own zone; None is never."""
    if time_us is None:
        return "never"
    return datetime_of(time_us).astimezone().isoformat(sep=" ", timespec="seconds")

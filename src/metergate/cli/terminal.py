"""What people read. Results go to stdout and all else to stderr, so that ``$(...)`` gets results only."""

import typer
from rich.console import Console
from rich.progress import Progress

from metergate.core.credits import format_credits
from metergate.core.times import datetime_of


def output() -> Console:
    """The console of results."""
    return Console()


def errors() -> Console:
    """The console of all else."""
    return Console(stderr=True)


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

"""``metergate usage``: what the gateway counted, beside what backends reported."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, store_of
from metergate.cli.store import clock, reading
from metergate.cli.tables import Cell, Column, Listing, show
from metergate.cli.terminal import output
from metergate.core.times import MICROSECONDS_PER_DAY, datetime_of
from metergate.ports import UsageComparison

app = typer.Typer(help="Usage: what was counted, and what backends reported.", no_args_is_help=True)

# A year: more is a report's business, and would read every charge there is.
DAYS_MAX = 366


@app.command(epilog="Example: metergate usage mismatch --days 30")
def mismatch(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    days: Annotated[int, typer.Option("--days", min=1, max=DAYS_MAX, help="How many days, today (UTC) included.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare, by day, backend and model, the tokens that were charged with those that the backend reported.

    Only answers that ended by themselves are compared: of others, a backend has counted what was never delivered. Works
    also while a gateway serves. It reads every charge of these days.
    """
    compared = asyncio.run(_compare(store_of(config, store), days))
    if as_json:
        typer.echo(json.dumps([_row(one) for one in compared], indent=2))
    elif not compared:
        output().print("No answers have ended in these days.")
    else:
        show(_listing(compared), output())


async def _compare(path: Path, days: int) -> tuple[UsageComparison, ...]:
    today_us = clock.now_us() // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY
    async with reading(path) as ledger:
        return await ledger.compare_usage(today_us - (days - 1) * MICROSECONDS_PER_DAY)


def _row(one: UsageComparison) -> dict[str, object]:
    return {
        "day": _day(one),
        **{name: value for name, value in asdict(one).items() if name != "day_us"},
        "difference_tokens": one.reported_tokens - one.counted_tokens,
    }


def _listing(compared: Sequence[UsageComparison]) -> Listing:
    numbers = ("charges", "no report", "flagged", "counted", "reported", "difference")
    return Listing(
        title="Tokens counted and reported, of answers that ended by themselves",
        columns=(
            *map(Column, ("day (UTC)", "backend", "model", "counted by")),
            *(Column(heading, is_number=True) for heading in numbers),
        ),
        rows=tuple(_cells(one) for one in compared),
    )


def _cells(one: UsageComparison) -> tuple[Cell, ...]:
    cells = (
        _day(one),
        one.backend_id,
        one.model_id,
        one.counting_source,
        f"{one.charges:,}",
        f"{one.unreported_charges:,}",
        f"{one.mismatched_charges:,}",
        f"{one.counted_tokens:,}",
        f"{one.reported_tokens:,}",
        f"{one.reported_tokens - one.counted_tokens:+,}",
    )
    return tuple(Text(cell, "bold red") for cell in cells) if one.mismatched_charges else cells


def _day(one: UsageComparison) -> str:
    return datetime_of(one.day_us).date().isoformat()

"""Options and arguments that several commands share, and the parsing of what people type."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import typer

from metergate.config import ID_PATTERN, load_config
from metergate.core import times
from metergate.core.accounts import DAY_US
from metergate.core.credits import parse_credits
from metergate.core.times import MICROSECONDS_PER_SECOND

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file.", metavar="FILE")]
DEFAULT_CONFIG = Path("metergate.toml")

StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="The store itself; instead of the one that --config names.", metavar="FILE"),
]

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_id(text: str) -> str:
    """An id that a resource name can carry."""
    if re.fullmatch(ID_PATTERN, text, re.ASCII) is None:
        raise typer.BadParameter("must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return text


SubscriberId = Annotated[
    str, typer.Argument(metavar="SUBSCRIBER", help="The subscriber's id, such as alice.", parser=parse_id)
]


def parse_amount(text: str) -> int:
    """Microcredits of a decimal number of credits."""
    try:
        return parse_credits(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def parse_duration_us(text: str) -> int:
    """Microseconds of a number and a unit: 90m, 24h, 31d."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text, re.ASCII)
    if match is None:
        raise typer.BadParameter("must be a number and m, h or d, such as 31d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) // timedelta(microseconds=1)


def parse_duration_seconds(text: str) -> int:
    """Seconds of a number and a unit."""
    return parse_duration_us(text) // MICROSECONDS_PER_SECOND


def parse_time_us(text: str) -> int:
    """Microseconds since the epoch of an ISO 8601 time with its zone."""
    try:
        return times.parse_time_us(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def parse_day(text: str) -> int:
    """Days since the epoch, of a date in UTC."""
    try:
        return times.parse_time_us(f"{date.fromisoformat(text).isoformat()}T00:00:00Z") // DAY_US
    except ValueError:
        raise typer.BadParameter("must be a date from 1970 on, such as 2026-12-31") from None


def check_order(is_in_order: bool) -> None:
    """BadParameter unless a range ends after it begins: an empty answer would look like one that found nothing."""
    if not is_in_order:
        raise typer.BadParameter("ends before --from begins", param_hint="--until")


def store_of(config_file: Path, store_path: Path | None) -> Path:
    """The store that is meant; ConfigInvalid if it must be found in a configuration that is wrong."""
    return load_config(config_file).store_path if store_path is None else store_path

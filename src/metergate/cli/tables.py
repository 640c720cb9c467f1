"""Tables for people: whole where there is room for them, else a field a line. An id that is cut cannot be copied."""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from metergate.cli.terminal import WIDTH_MAX

Cell = str | Text  # a Text has a style; a str is shown as it is, whatever looks like markup in it


@dataclass(frozen=True, slots=True)
class Column:
    """A field of every row."""

    heading: str  # with the unit, where the table's title does not say it
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What is shown. A column that is empty in every row is left out."""

    title: Cell
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footer: tuple[Cell, ...] = ()  # like a row, below all; empty: there is none


def show(listing: Listing, console: Console) -> None:
    """Print it, as wide as it needs, or, where the terminal is narrower, a field a line."""
    listing = _without_empty_columns(listing)
    table = _table(listing)
    needed = Measurement.get(console, console.options.update_width(WIDTH_MAX), table).maximum
    console.print(_text(listing.title), style="italic")
    if needed <= console.width:
        console.print(table)
    else:
        _show_records(listing, console)


def _without_empty_columns(listing: Listing) -> Listing:
    used = [
        index for index in range(len(listing.columns)) if not listing.rows or any(row[index] for row in listing.rows)
    ]
    return Listing(
        title=listing.title,
        columns=tuple(listing.columns[index] for index in used),
        rows=tuple(tuple(row[index] for index in used) for row in listing.rows),
        footer=tuple(listing.footer[index] for index in used) if listing.footer else (),
    )


def _table(listing: Listing) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_footer=bool(listing.footer),
    )
    for index, column in enumerate(listing.columns):
        table.add_column(
            column.heading,
            footer=_text(listing.footer[index]) if listing.footer else "",
            justify="right" if column.is_number else "left",
            no_wrap=True,
        )
    for row in listing.rows:
        table.add_row(*map(_text, row))
    return table


def _show_records(listing: Listing, console: Console) -> None:
    for row in (*listing.rows, *((listing.footer,) if listing.footer else ())):
        record = Table.grid(padding=(0, 2, 0, 0))
        record.add_column(no_wrap=True, style="dim")
        record.add_column(overflow="fold")
        for column, cell in zip(listing.columns, row, strict=True):
            if cell:
                record.add_row(column.heading, _text(cell))
        console.print(Rule(style="dim"))
        console.print(record)
    console.print()


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)

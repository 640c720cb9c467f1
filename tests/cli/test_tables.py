"""Tables for people: whole where there is room, a field a line where there is none, and ids are never cut."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from metergate.cli import terminal
from metergate.cli.tables import Column, Listing, show

KEY = "10bf44786d4e42a38bce5d66bacb6fa0"


def a_listing(rows: int = 1) -> Listing:
    return Listing(
        title="Keys",
        columns=(Column("key"), Column("app"), Column("revoked"), Column("credits", is_number=True)),
        rows=tuple((KEY, f"app-{number}", "", "5.000000") for number in range(rows)),
    )


def shown(listing: Listing, *, width: int) -> str:
    stream = io.StringIO()
    show(listing, Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue()


def test_a_table_that_fits_has_a_row_a_line() -> None:
    text = shown(a_listing(2), width=80)
    assert len([line for line in text.splitlines() if KEY in line and "app-" in line and "5.000000" in line]) == 2


@pytest.mark.parametrize("width", [20, 40, 50])
def test_on_a_narrow_terminal_each_field_has_a_line_of_its_own(width: int) -> None:
    text = shown(a_listing(2), width=width)
    assert "app      app-0" in text
    assert "credits  5.000000" in text
    assert text.count("app-") == 2
    if width > len(KEY) + len("credits  "):
        assert text.count(KEY) == 2


def test_a_column_that_is_empty_everywhere_is_left_out() -> None:
    assert "revoked" not in shown(a_listing(), width=80)
    assert "revoked" not in shown(a_listing(), width=40)


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    listing = Listing(title="Keys", columns=(Column("why"),), rows=(("[bold]not[/bold]",), (Text("red", "red"),)))
    assert "[bold]not[/bold]" in shown(listing, width=80)
    assert "[bold]not[/bold]" in "".join(shown(listing, width=12).split()).replace("─", "")


def test_a_footer_is_below_the_rows_in_either_form() -> None:
    listing = Listing(
        title="Accounts", columns=(Column("account"), Column("balance")), rows=(("grants", "1"),), footer=("all", "7")
    )
    for width in (80, 15):
        text = shown(listing, width=width)
        assert text.index("grants") < text.index("all")


def test_where_nobody_looks_lines_are_never_broken(capsys: pytest.CaptureFixture[str]) -> None:
    listing = Listing(title="Keys", columns=(Column("key"), Column("why")), rows=((KEY, "because " * 40),))
    show(listing, terminal.output())
    [line] = [line for line in capsys.readouterr().out.splitlines() if KEY in line]
    assert line.count("because") == 40

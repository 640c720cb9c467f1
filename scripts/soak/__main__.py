"""``make soak``: every part, or ``--only`` those named; exits 1 where a law broke or a bar was missed."""

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from soak import crash, power_loss, scale, simulation
from soak.figures import Figure, Progress

Part = Callable[[Path, Progress], list[Figure]]

PARTS: Mapping[str, Part] = {
    "simulation": simulation.run,
    "crash": crash.run,
    "power_loss": power_loss.run,
    "scale": scale.run,
}


def main() -> int:
    """Run the parts one after the other, and show a table of what they found."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="this part; may be given again")
    parser.add_argument("--folder", type=Path, help="where the ledgers are made (default: a temporary folder)")
    arguments = parser.parse_args()
    console = Console()
    # Killing, failing and recovering is what happens here, thousands of times; each would be a line.
    logging.disable(logging.CRITICAL)
    found = {name: _run(name, console, arguments.folder) for name in arguments.only or PARTS}
    console.print(_summary(found))
    return 0 if all(figure.is_met for figures in found.values() for figure in figures) else 1


def _run(name: str, console: Console, parent: Path | None) -> list[Figure]:
    """The part's figures; where it breaks, one that says so, after its traceback."""
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix=f"metergate-soak-{name}-", dir=parent) as folder,
        console.status(name) as status,
    ):
        try:
            figures = PARTS[name](Path(folder), lambda text: status.update(f"{name}: {text}"))
        except Exception as exc:  # noqa: BLE001 - one part that breaks must not hide what the others find
            console.print("".join(traceback.format_exception(exc)), markup=False, highlight=False)
            figures = [Figure(what="broken", value=type(exc).__name__, is_met=False)]
    console.print(f"{name}: {time.perf_counter() - began:,.0f} s")
    return figures


def _summary(found: Mapping[str, list[Figure]]) -> Table:
    table = Table("part", "what", title="make soak", title_justify="left", title_style="bold")
    table.add_column("figure", justify="right")
    table.add_column("bar", justify="right")
    table.add_column("met")
    for name, figures in found.items():
        for figure in figures:
            met = ("yes" if figure.is_met else "[bold red]no") if figure.bar or not figure.is_met else ""
            table.add_row(name, figure.what, figure.value, figure.bar, met)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Run the soak: ``PYTHONPATH=scripts:tests python -m soak --help``."""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from soak.counting import counting
from soak.crash import crash
from soak.erasing import erasing
from soak.faults import faults
from soak.memory import memory
from soak.parts import Figures, Step
from soak.power import power
from soak.scale import scale
from soak.simulation import simulation

# Each tells of every step it took, and returns what it found; a law that does not hold is an AssertionError.
PARTS: Mapping[str, tuple[Callable[[int, Step], Figures], int]] = {
    "simulation": (simulation, 10_000),
    "crash": (crash, 200),
    "power": (power, 2_000),
    "faults": (faults, 1_200),
    "counting": (counting, 20_000),
    "erasing": (erasing, 100),  # thousands of charges, all of one subscriber
    "memory": (memory, 500),  # thousands of charges
    "scale": (scale, 10_000),  # thousands of charges
}


# As a shell says it of what Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    """The command line; 1 if a law did not hold."""
    # Told to end, by whichever signal, it must not leave a gateway behind: both leave through the same clean-up.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    parser = argparse.ArgumentParser(prog="soak", description="Prove the laws for longer than the tests do.")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="default: all, one after the other")
    parser.add_argument(
        "--steps", type=int, help="seeds, kills, ...; default: what the guide's figures were taken with"
    )
    options = parser.parse_args()
    console = Console()
    table = Table("part", "steps", "seconds", "figures", "laws", title="Soak")
    has_failed = False
    for name in options.only or PARTS:
        part, steps = PARTS[name]
        figures, problem, seconds = _run(name, part, options.steps or steps, console)
        has_failed |= bool(problem)
        told = "\n".join(f"{figure} {value}" for figure, value in figures.items())
        verdict = "[red]BROKEN[/]" if problem else "[green]held[/]"
        if problem:
            console.print(f"{name}: {problem}", style="red", markup=False)
        table.add_row(name, f"{options.steps or steps:,}", f"{seconds:,.0f}", told, verdict)
    console.print(table)
    return 1 if has_failed else 0


def _run(name: str, part: Callable[[int, Step], Figures], steps: int, console: Console) -> tuple[Figures, str, float]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    began = time.monotonic()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=steps)
        try:
            return part(steps, lambda: progress.advance(task)), "", time.monotonic() - began
        except AssertionError:
            # A bare assertion says nothing itself; where it stands does.
            return {}, traceback.format_exc(), time.monotonic() - began


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        sys.exit(INTERRUPTED)

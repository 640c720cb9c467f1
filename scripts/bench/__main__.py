"""Run the bench: ``PYTHONPATH=scripts python -m bench --help``."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import sqlite3
import sys
import tempfile
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report
from bench.calls import ways
from bench.costs import LOADS, QUICK_LOADS, measure_costs
from bench.counting import measure_counting
from bench.cycles import measure_cycles
from bench.hops import measure_hops
from bench.latency import measure_latency
from bench.long_texts import measure_long_texts
from bench.processes import NotReady, running
from bench.results import Results
from bench.store import measure_captures

PARTS = ("costs", "latency", "captures", "cycles", "counting", "long_texts", "hops")
DEFAULT_PARTS = PARTS[:-1]  # hops is what a decision rests on, not what changes from day to day
DOCS = Path(__file__).resolve().parents[2] / "docs"
LIBRARIES = ("grpcio", "uvloop", "protobuf", "tiktoken", "tokenizers")

# docs/benchmarks.md between these lines is written by --write; what is around them is written by people.
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure what the gateway costs, and what its parts do.")
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement, in turns (default %(default)s)")
    parser.add_argument("--only", choices=PARTS, action="append", help=f"default: {', '.join(DEFAULT_PARTS)}")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where results go (default %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the results into docs/benchmarks.md and .png")
    options = parser.parse_args()
    if options.write and (options.quick or options.only):
        parser.error("--write needs a whole run")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


async def measure(options: argparse.Namespace, folder: Path, progress: Progress) -> Results:
    """Run the parts that were asked for."""
    task = progress.add_task("", total=None)

    def step(text: str) -> None:
        progress.update(task, description=text)

    parts = set(options.only or DEFAULT_PARTS)
    rounds = 1 if options.quick else options.rounds
    results = Results(
        command="make bench",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=_machine(),
        costs=[],
        latency=None,
        captures=None,
        cycles=None,
        hops=[],
        counting=[],
        long_texts=[],
    )
    if parts & {"costs", "latency"}:
        step("starting the backend, the pass-through and the gateway")
        with running(folder) as world:
            async with ways(world) as both:
                if "latency" in parts:
                    results.latency = await measure_latency(both, 5 if options.quick else 300, step)
                if "costs" in parts:
                    results.costs = await measure_costs(both, QUICK_LOADS if options.quick else LOADS, rounds, step)
    if "cycles" in parts:
        results.cycles = await measure_cycles(folder, 2 if options.quick else 10 * rounds, step)
    if "captures" in parts:
        results.captures = await measure_captures(folder, rounds, 2 if options.quick else 60, step)
    if "hops" in parts:
        results.hops = await measure_hops(folder, rounds, 0.01 if options.quick else 0.4, step)
    if "counting" in parts:
        results.counting = measure_counting(2_000 if options.quick else 400_000, rounds, step)
    if "long_texts" in parts:
        sizes = (2_000, 20_000) if options.quick else (200_000, 1_000_000)
        results.long_texts = await measure_long_texts(*sizes, step)
    return results


def _machine() -> dict[str, str]:
    models = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "CPU": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f} at the start (other work on the machine included)",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def write_docs(results: Results) -> None:
    """Put the results into docs/benchmarks.md, and the plot beside it."""
    from bench.plot import draw  # matplotlib takes a second to import, and only this needs it

    draw(results.costs, DOCS / "benchmarks.png")
    page = DOCS / "benchmarks.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{report.markdown(results)}\n{END}{after}")


def main() -> None:
    """Measure, show, keep."""
    options = arguments()
    console = Console()
    # Not below /tmp: a memory file system would hide what a commit costs.
    with (
        tempfile.TemporaryDirectory(dir=".", prefix=".bench-") as folder,
        Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress,
    ):
        try:
            results = uvloop.run(measure(options, Path(folder).resolve(), progress))
        except NotReady as problem:
            sys.exit(f"bench: {problem}")
    report.show(results, console)
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    console.print(f"Results: {options.json}")
    if options.write:
        write_docs(results)
        console.print(f"Written: {DOCS / 'benchmarks.md'}, {DOCS / 'benchmarks.png'}")


if __name__ == "__main__":
    main()

"""Tables of what was measured: on the terminal, and in docs/benchmarks.md."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.results import Captures, Cost, Counting, Cycles, Hops, Latency, LongText, Results


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table before it is drawn; the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def table(self) -> Table:
        """As Rich draws it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def sheets(results: Results) -> list[Sheet]:
    """One for each part that ran."""
    return [
        *([_costs(results.costs)] if results.costs else []),
        *([_latency(results.latency)] if results.latency else []),
        *([_captures(results.captures)] if results.captures else []),
        *([_cycles(results.cycles)] if results.cycles else []),
        *([_hops(results.hops)] if results.hops else []),
        *([_counting(results.counting)] if results.counting else []),
        *([_long_texts(results.long_texts)] if results.long_texts else []),
    ]


def show(results: Results, console: Console) -> None:
    """Print every table."""
    for sheet in sheets(results):
        console.print(sheet.table(), "")


def markdown(results: Results) -> str:
    """Every table with its title, and where and how they were measured."""
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    parts = [f"Measured {results.date} with `{results.command}` on: {machine}."]
    parts += [f"### {sheet.title}\n\n{sheet.markdown()}" for sheet in sheets(results)]
    return "\n\n".join(parts) + "\n"


def _costs(costs: Iterable[Cost]) -> Sheet:
    rows = [
        (
            cost.load,
            f"{median(cost.gateway_us):,.0f}",
            f"{median(cost.pass_through_us):,.0f}",
            f"{cost.ratio:.2f}",
            f"{cost.bar:.1f}",
            "yes" if cost.ratio <= cost.bar else "no",
            f"{median(cost.tokens_a_delivery):.1f}" if cost.tokens_a_delivery else "",
        )
        for cost in costs
    ]
    columns = ("load", "gateway, us", "pass-through, us", "ratio", "bar", "met", "tokens a delivery")
    return Sheet("CPU a streamed token or a unary call (medians)", columns, rows)


def _latency(latency: Latency) -> Sheet:
    def row(name: str, gateway: float, pass_through: float) -> tuple[str, ...]:
        return (name, f"{gateway:.2f}", f"{pass_through:.2f}", f"{gateway - pass_through:.2f}")

    rows = [
        row("p50", latency.gateway_p50_ms, latency.pass_through_p50_ms),
        row("p99", latency.gateway_p99_ms, latency.pass_through_p99_ms),
    ]
    title = f"Time to first token, one request at a time ({latency.requests} each, in turns)"
    return Sheet(title, ("", "gateway, ms", "pass-through, ms", "added, ms"), rows)


def _captures(captures: Captures) -> Sheet:
    store, raw = median(captures.store_a_second), median(captures.raw_a_second)
    rows = [
        ("through the store, decided and acknowledged", f"{store:,.0f}", f"{median(captures.store_cpu_us):.1f}"),
        ("the same rows by executemany", f"{raw:,.0f}", ""),
    ]
    title = f"Durable captures, SQLite, synchronous=FULL, batches of {captures.batch} (medians)"
    return Sheet(title, ("", "captures/s", "CPU each, us"), rows)


def _cycles(cycles: Cycles) -> Sheet:
    rows = [
        (
            "reserve, capture, settle: whole cycles",
            f"{median(cycles.cycles_a_second):,.0f}",
            f"{median(cycles.cpu_us):.1f}",
        ),
        ("of them the reserves", f"{median(cycles.reserves_a_second):,.0f}", ""),
        ("the captures", f"{median(cycles.captures_a_second):,.0f}", ""),
        ("the settles", f"{median(cycles.settles_a_second):,.0f}", ""),
        ("the same rows by executemany, whole cycles", f"{median(cycles.raw_a_second):,.0f}", ""),
    ]
    title = f"Durable cycles, SQLite, synchronous=FULL, batches of {cycles.batch} (medians)"
    return Sheet(title, ("", "a second", "CPU each, us"), rows)


def _hops(hops: Iterable[Hops]) -> Sheet:
    rows = [
        (
            f"{hop.reads} reads, {hop.rows} rows",
            f"{hop.one_hop:,.0f}",
            f"{hop.a_hop_a_statement:,.0f}",
            f"{hop.one_hop / hop.a_hop_a_statement:.2f}",
        )
        for hop in hops
    ]
    columns = ("batch", "one hop a batch", "a hop a statement (aiosqlite)", "ratio")
    return Sheet("Transactions a second, synchronous=FULL (medians)", columns, rows)


def _counting(counting: Iterable[Counting]) -> Sheet:
    rows = [
        (
            f"{count.vocabulary}, {count.language}",
            f"{count.megabytes_a_second:.1f}",
            f"{count.reference_megabytes_a_second:.1f}" if count.reference_megabytes_a_second else "-",
            f"{count.chunk_us:.1f}",
        )
        for count in counting
    ]
    columns = ("vocabulary", "whole text, MB/s", "library's own encode, MB/s", "a chunk of 4 characters, us")
    return Sheet("Counting (medians)", columns, rows)


def _long_texts(texts: Iterable[LongText]) -> Sheet:
    rows = [
        (
            f"{text.vocabulary}: {text.text}",
            f"{text.deliveries:,}",
            f"{text.delivery_us:,.0f}",
            f"{text.late_p99_ms:.1f}",
            f"{text.late_max_ms:.1f}",
        )
        for text in texts
    ]
    columns = ("text", "deliveries counted", "each, us", "others woken late, p99, ms", "at most, ms")
    return Sheet("Long texts beside other streams", columns, rows)

"""Auditing a whole store for a person who waits, and telling what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metergate.cli.store import reading
from metergate.cli.terminal import output, showing_progress
from metergate.core.audit import Audit, Difference
from metergate.core.credits import format_credits

# As many as a person reads; the rest is counted.
DIFFERENCES_SHOWN_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A finished audit."""

    audit: Audit
    differences: Sequence[Difference]  # the first
    different: int  # how many there are


async def audit_store(path: Path) -> Verdict:
    """Recompute every book of a store, with a bar on the terminal; memory does not grow with the store."""
    audit, found, different = Audit(), list[Difference](), 0
    async with reading(path) as ledger:
        with showing_progress() as progress:
            bar = progress.add_task("subscribers", total=await ledger.count_subscribers())
            async for subscriber in ledger.audit():
                differences = await audit.check(subscriber)
                different += len(differences)
                found += differences[: DIFFERENCES_SHOWN_MAX - len(found)]
                progress.advance(bar)
    totals = audit.check_totals()
    return Verdict(audit=audit, differences=[*found, *totals], different=different + len(totals))


def tell(verdict: Verdict, console: Console | None = None) -> bool:
    """Print what was found; whether nothing differs."""
    console = console or output()
    console.print(_summary(verdict.audit))
    if verdict.different:
        console.print(_differences(verdict.differences))
        shown = len(verdict.differences)
        console.print(f"[bold red]{verdict.different} differences[/], the first {shown} are shown.")
        return False
    console.print("[bold green]No differences.")
    return True


def _summary(audit: Audit) -> Table:
    table = Table(title="Recomputed from its transfers", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, number in (
        ("subscribers", audit.subscribers),
        ("charges", audit.charges),
        ("transfers", audit.transfers),
    ):
        table.add_row(name, f"{number:,}")
    table.add_section()
    for account, balance in sorted(audit.business_microcredits.items()):
        table.add_row(f"{account}, credits", format_credits(balance))
    table.add_row("held by subscribers, credits", format_credits(audit.owed_microcredits))
    return table


def _differences(differences: Sequence[Difference]) -> Table:
    table = Table(title="Differences", title_justify="left")
    for heading in ("kind", "subscriber", "resource", "what differs"):
        table.add_column(heading, overflow="fold")
    for difference in differences:
        table.add_row(difference.kind, difference.subscriber_id, difference.resource_id, difference.sentence)
    return table

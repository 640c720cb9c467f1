"""Auditing a whole store for a person who waits, and telling what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from metergate.cli.store import reading
from metergate.cli.tables import Column, Listing, show
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
    show(_summary(verdict.audit), console)
    if verdict.different:
        show(_differences(verdict.differences), console)
        shown = len(verdict.differences)
        console.print(f"[bold red]{verdict.different} differences[/], the first {shown} are shown.")
        return False
    console.print("[bold green]No differences.")
    return True


def _summary(audit: Audit) -> Listing:
    counts = {"subscribers": audit.subscribers, "charges": audit.charges, "transfers": audit.transfers}
    balances = {**dict(sorted(audit.business_microcredits.items())), "held by subscribers": audit.owed_microcredits}
    return Listing(
        title="Recomputed from its transfers",
        columns=(Column(""), Column("sum", is_number=True), Column("unit")),
        rows=(
            *((name, f"{number:,}", "") for name, number in counts.items()),
            *((account, format_credits(balance), "credits") for account, balance in balances.items()),
        ),
    )


def _differences(differences: Sequence[Difference]) -> Listing:
    return Listing(
        title="Differences",
        columns=tuple(map(Column, ("kind", "subscriber", "resource", "what differs"))),
        rows=tuple(
            (difference.kind, difference.subscriber_id, difference.resource_id, Text(difference.sentence, "red"))
            for difference in differences
        ),
    )

"""``metergate ledger``: whether the books add up."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, parse_day, store_of
from metergate.cli.store import reading
from metergate.cli.terminal import output
from metergate.core.accounts import AccountBalance
from metergate.core.audit import Audit, Difference
from metergate.core.credits import format_credits
from metergate.ports import ALL_DAYS, Days

app = typer.Typer(help="The ledger: whether its books add up.", no_args_is_help=True)

DIFFERENT = 1

# As many as a person reads; the rest is counted.
DIFFERENCES_SHOWN_MAX = 200


@app.command(epilog="Example: metergate ledger verify --store ledger.db")
def verify(config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Recompute every book from its evidence, also while a gateway serves. Exits with 1 if anything differs."""
    audit, differences, different = asyncio.run(_verify(store_of(config, store)))
    console = output()
    console.print(_summary(audit))
    if different:
        console.print(_differences(differences))
        console.print(f"[bold red]{different} differences[/], the first {len(differences)} are shown.")
        raise typer.Exit(DIFFERENT)
    console.print("[bold green]No differences.")


async def _verify(path: Path) -> tuple[Audit, list[Difference], int]:
    """The finished audit, the first differences, and how many there are."""
    found: list[Difference] = []
    different = 0
    terminal = Console(stderr=True)
    progress = Progress(console=terminal, transient=True, disable=not terminal.is_terminal)
    async with reading(path) as ledger:
        audit = Audit()
        with progress:
            bar = progress.add_task("subscribers", total=await ledger.count_subscribers())
            async for subscriber in ledger.audit():
                differences = await audit.check(subscriber)
                different += len(differences)
                found += differences[: DIFFERENCES_SHOWN_MAX - len(found)]
                progress.advance(bar)
    totals = audit.check_totals()
    return audit, [*found, *totals], different + len(totals)


@app.command(epilog="Example: metergate ledger accounts --from 2026-12-01 --until 2026-12-31")
def accounts(
    first_day: Annotated[
        int | None,
        typer.Option("--from", parser=parse_day, metavar="DATE", help="The first day, UTC. Default: the first of all."),
    ] = None,
    last_day: Annotated[
        int | None, typer.Option("--until", parser=parse_day, metavar="DATE", help="The last day, UTC. Default: today.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Show what moved in and out of every account, also while a gateway serves. `grants` is what subscribers hold."""
    days = Days(first=first_day or 0, last=ALL_DAYS.last if last_day is None else last_day)
    output().print(_accounts(asyncio.run(_balances(store_of(config, store), days))))


async def _balances(path: Path, days: Days) -> Mapping[str, AccountBalance]:
    async with reading(path) as ledger:
        return await ledger.account_balances(days)


def _accounts(balances: Mapping[str, AccountBalance]) -> Table:
    table = Table(title="Accounts, in credits", title_justify="left", show_footer=True)
    table.add_column("account", footer="all")
    sums = {
        "debited": [balance.debited_microcredits for balance in balances.values()],
        "credited": [balance.credited_microcredits for balance in balances.values()],
        "balance": [balance.balance_microcredits for balance in balances.values()],
    }
    for heading, amounts in sums.items():
        table.add_column(heading, footer=format_credits(sum(amounts)), justify="right", no_wrap=True)
    for index, account in enumerate(balances):
        table.add_row(account, *(format_credits(amounts[index]) for amounts in sums.values()))
    return table


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

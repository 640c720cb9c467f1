"""``metergate ledger``: whether the books add up."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, check_order, parse_day, store_of
from metergate.cli.store import reading
from metergate.cli.terminal import output
from metergate.cli.verifying import audit_store, tell
from metergate.core.accounts import AccountBalance
from metergate.core.credits import format_credits
from metergate.ports import ALL_DAYS, Days

app = typer.Typer(help="The ledger: whether its books add up.", no_args_is_help=True)

DIFFERENT = 1


@app.command(epilog="Example: metergate ledger verify --store ledger.db")
def verify(config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Recompute every book from its evidence, also while a gateway serves. Exits with 1 if anything differs."""
    if not tell(asyncio.run(audit_store(store_of(config, store)))):
        raise typer.Exit(DIFFERENT)


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
    check_order(days.first <= days.last)
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

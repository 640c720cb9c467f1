"""``metergate ledger``: whether the books add up."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, check_order, parse_day, store_of
from metergate.cli.store import reading
from metergate.cli.tables import Column, Listing, show
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
    show(_listing(asyncio.run(_balances(store_of(config, store), days))), output())


async def _balances(path: Path, days: Days) -> Mapping[str, AccountBalance]:
    async with reading(path) as ledger:
        return await ledger.account_balances(days)


def _listing(balances: Mapping[str, AccountBalance]) -> Listing:
    rows = {
        account: (balance.debited_microcredits, balance.credited_microcredits, balance.balance_microcredits)
        for account, balance in balances.items()
    }
    sums = [sum(amounts) for amounts in zip(*rows.values(), strict=True)] or [0, 0, 0]
    return Listing(
        title="Accounts, in credits",
        columns=(
            Column("account"),
            *(Column(heading, is_number=True) for heading in ("debited", "credited", "balance")),
        ),
        rows=tuple((account, *map(format_credits, amounts)) for account, amounts in rows.items()),
        footer=("all", *map(format_credits, sums)),
    )

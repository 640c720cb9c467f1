"""``metergate wallet``: what a subscriber holds."""

import asyncio
from pathlib import Path

import typer
from rich.table import Table

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, SubscriberId, store_of
from metergate.cli.store import clock, reading
from metergate.cli.terminal import explain, output, time_of
from metergate.core.credits import format_credits
from metergate.core.rows import Grant
from metergate.ports import Balance, Page

app = typer.Typer(help="Wallets: what subscribers hold.", no_args_is_help=True)

# As many as a person reads; the newest come first.
GRANTS_SHOWN_MAX = 50


@app.command(epilog="Example: metergate wallet show alice")
def show(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Show a wallet and its newest grants, also while a gateway serves."""
    balance, grants = asyncio.run(_read(store_of(config, store), subscriber))
    console = output()
    console.print(_totals(balance))
    console.print(_grants(grants.rows))
    if grants.next_cursor is not None:
        explain(f"only the newest {GRANTS_SHOWN_MAX} grants are shown")


async def _read(path: Path, subscriber_id: str) -> tuple[Balance, Page[Grant]]:
    async with reading(path) as ledger:
        balance = await ledger.balance(subscriber_id, None, clock.now_us())
        return balance, await ledger.list_grants(subscriber_id, cursor=None, size=GRANTS_SHOWN_MAX)


def _totals(balance: Balance) -> Table:
    table = Table(title=f"Wallet of {balance.wallet.subscriber_id} ({balance.wallet.state})", title_justify="left")
    table.add_column("")
    table.add_column("credits", justify="right")
    table.add_row("available", format_credits(balance.available_microcredits))
    table.add_row("reserved", format_credits(balance.reserved_microcredits))
    return table


def _grants(grants: tuple[Grant, ...]) -> Table:
    table = Table(title="Grants", title_justify="left")
    for heading in ("grant", "source", "priority"):
        table.add_column(heading, overflow="fold")
    for heading in ("credits", "remaining"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("expires")
    for grant in grants:
        table.add_row(
            grant.grant_id,
            grant.source,
            str(grant.priority),
            format_credits(grant.amount_microcredits),
            format_credits(grant.remaining_microcredits),
            time_of(grant.expire_time_us),
        )
    return table

"""``metergate subscriber``: who pays."""

import asyncio
import os
from pathlib import Path

import typer

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, SubscriberId, store_of
from metergate.cli.store import clock, writing
from metergate.cli.terminal import explain
from metergate.core.operations import AddSubscriber
from metergate.core.rows import Wallet, WalletState

app = typer.Typer(help="Subscribers: who pays.", no_args_is_help=True)


@app.command(epilog="Example: metergate subscriber create alice")
def create(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Open a subscriber's wallet, and the store itself if there is none yet. Again: nothing changes."""
    path = store_of(config, store)
    if not os.path.exists(path):
        explain(f"creating the store {path}")
    asyncio.run(_create(path, subscriber))
    typer.echo(subscriber)


async def _create(path: Path, subscriber_id: str) -> None:
    wallet = Wallet(subscriber_id=subscriber_id, state=WalletState.ACTIVE, sequence=0, create_time_us=clock.now_us())
    async with writing(path, create=True) as ledger:
        await ledger.add_subscriber(AddSubscriber(wallet=wallet))

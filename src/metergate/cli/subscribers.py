"""``metergate subscriber``: who pays."""

import os

import typer

from metergate.cli.corrections import Actor, Reason, actor_of
from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, SubscriberId, store_of
from metergate.cli.store import clock, write
from metergate.cli.terminal import explain
from metergate.core.erasing import PSEUDONYM_BYTES, subscriber_pseudonym
from metergate.core.operations import AddSubscriber, EraseSubscriber
from metergate.core.rows import Wallet, WalletState

app = typer.Typer(help="Subscribers: who pays.", no_args_is_help=True)


@app.command(epilog="Example: metergate subscriber create alice")
def create(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Open a subscriber's wallet, and the store itself if there is none yet. Again: nothing changes."""
    path = store_of(config, store)
    if not os.path.exists(path):
        explain(f"creating the store {path}")
    wallet = Wallet(subscriber_id=subscriber, state=WalletState.ACTIVE, sequence=0, create_time_us=clock.now_us())
    write(path, lambda ledger: ledger.add_subscriber(AddSubscriber(wallet=wallet)), create=True)
    typer.echo(subscriber)


@app.command(epilog="Example: metergate subscriber erase alice --reason 'asked to be forgotten'")
def erase(
    subscriber: SubscriberId,
    reason: Reason,
    actor: Actor = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Forget a subscriber for ever, also while a gateway serves, and print the pseudonym of what stays.

    Its id and those of its grants and requests are replaced, keys and authorizations are gone, credit that is left
    cannot be spent any more. Charges and transfers stay, and verify. Refused while a request of it runs.
    If it was interrupted, do it again: it goes on.
    """
    operation = EraseSubscriber(
        subscriber_id=subscriber,
        pseudonym=subscriber_pseudonym(os.urandom(PSEUDONYM_BYTES)),
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )
    erasure = write(store_of(config, store), lambda ledger: ledger.erase_subscriber(operation))
    if erasure.leaves_copies:
        explain("old copies may be left in unused space: run `metergate ledger compact` while no gateway serves")
    explain("forgotten; backups and exports that were made before still name it")
    typer.echo(erasure.subscriber_id)

"""``metergate wallet``: what a subscriber holds, and what an operator does to it by hand."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from metergate.cli.corrections import Actor, CorrectionId, Reason, actor_of, id_of, tell
from metergate.cli.parameters import (
    DEFAULT_CONFIG,
    ConfigFile,
    StorePath,
    SubscriberId,
    parse_amount,
    parse_duration_seconds,
    store_of,
)
from metergate.cli.store import clock, reading, writing
from metergate.cli.terminal import explain, output, time_of
from metergate.core.credits import format_credits
from metergate.core.operations import Adjust, SetWalletState
from metergate.core.rows import Correction, Grant, WalletState
from metergate.ports import Balance, Page

app = typer.Typer(help="Wallets: what subscribers hold.", no_args_is_help=True)

# As many as a person reads; the newest come first.
GRANTS_SHOWN_MAX = 50
CORRECTIONS_SHOWN_MAX = 20


@app.command(epilog="Example: metergate wallet show alice")
def show(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Show a wallet, its newest grants and what was done to it by hand, also while a gateway serves."""
    balance, grants, corrections = asyncio.run(_read(store_of(config, store), subscriber))
    console = output()
    console.print(_totals(balance))
    console.print(_grants(grants.rows))
    if corrections.rows:
        console.print(_corrections(corrections.rows))
    if grants.next_cursor is not None:
        explain(f"only the newest {GRANTS_SHOWN_MAX} grants are shown")
    if corrections.next_cursor is not None:
        explain(f"only the newest {CORRECTIONS_SHOWN_MAX} corrections are shown")


async def _read(path: Path, subscriber_id: str) -> tuple[Balance, Page[Grant], Page[Correction]]:
    async with reading(path) as ledger:
        balance = await ledger.balance(subscriber_id, None, clock.now_us())
        grants = await ledger.list_grants(subscriber_id, cursor=None, size=GRANTS_SHOWN_MAX)
        corrections = await ledger.list_corrections(subscriber_id, cursor=None, size=CORRECTIONS_SHOWN_MAX)
        return balance, grants, corrections


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
    for heading in ("expires", "then rolls over"):
        table.add_column(heading)
    for grant in grants:
        table.add_row(
            grant.grant_id,
            grant.source,
            str(grant.priority),
            format_credits(grant.amount_microcredits),
            format_credits(grant.remaining_microcredits),
            "(reversed)" if grant.reverse_time_us is not None else time_of(grant.expire_time_us),
            f"up to {format_credits(grant.rollover_microcredits_max)}" if grant.rollover_microcredits_max else "",
        )
    return table


def _corrections(corrections: tuple[Correction, ...]) -> Table:
    table = Table(title="Done by hand", title_justify="left")
    for heading in ("id", "what"):
        table.add_column(heading, overflow="fold")
    table.add_column("credits", justify="right", no_wrap=True)
    for heading in ("why", "by", "when"):
        table.add_column(heading, overflow="fold")
    for correction in corrections:
        amount = correction.amount_microcredits
        table.add_row(
            correction.correction_id,
            correction.kind,
            format_credits(amount) if amount else "",
            escape(correction.reason),
            escape(correction.actor),
            time_of(correction.create_time_us),
        )
    return table


@app.command(epilog="Example: metergate wallet adjust alice --credits 2 --expires-in 31d --reason 'the outage'")
def adjust(
    subscriber: SubscriberId,
    amount: Annotated[
        int, typer.Option("--credits", parser=parse_amount, metavar="N", help="How many, as 5 or 0.25; -5 takes them.")
    ],
    reason: Reason,
    grant_seconds: Annotated[
        int | None,
        typer.Option(
            "--expires-in",
            parser=parse_duration_seconds,
            metavar="31d",
            help="How long what is given lives: days (d), hours (h), minutes (m); else for ever.",
        ),
    ] = None,
    actor: Actor = None,
    correction_id: CorrectionId = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Give credits, or take them, also while a gateway serves: at most what is available. Prints the record's id."""
    operation = Adjust(
        correction_id=id_of(correction_id),
        subscriber_id=subscriber,
        amount_microcredits=amount,
        grant_seconds=grant_seconds,
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )
    tell(asyncio.run(_adjust(store_of(config, store), operation)))


async def _adjust(path: Path, operation: Adjust) -> Correction:
    async with writing(path) as ledger:
        return await ledger.adjust(operation)


@app.command(epilog="Example: metergate wallet suspend alice --reason 'reported stolen'")
def suspend(
    subscriber: SubscriberId,
    reason: Reason,
    actor: Actor = None,
    correction_id: CorrectionId = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Stop a wallet, also while a gateway serves: no new request is admitted, running ones set no more credit aside."""
    tell(_set_state(store_of(config, store), subscriber, WalletState.SUSPENDED, reason, actor, correction_id))


@app.command(epilog="Example: metergate wallet resume alice --reason 'paid in cash'")
def resume(
    subscriber: SubscriberId,
    reason: Reason,
    actor: Actor = None,
    correction_id: CorrectionId = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Let a suspended wallet be spent from again, also while a gateway serves."""
    tell(_set_state(store_of(config, store), subscriber, WalletState.ACTIVE, reason, actor, correction_id))


def _set_state(
    path: Path, subscriber: str, state: WalletState, reason: str, actor: str | None, correction_id: str | None
) -> Correction:
    operation = SetWalletState(
        correction_id=id_of(correction_id),
        subscriber_id=subscriber,
        state=state,
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )

    async def ask() -> Correction:
        async with writing(path) as ledger:
            return await ledger.set_wallet_state(operation)

    return asyncio.run(ask())

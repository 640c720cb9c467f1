"""``metergate wallet``: what a subscriber holds, and what an operator does to it by hand."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

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
from metergate.cli.store import clock, reading, write
from metergate.cli.tables import Column, Listing
from metergate.cli.tables import show as show_listing
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
    show_listing(_totals(balance), console)
    show_listing(_grants(grants.rows, clock.now_us()), console)
    if corrections.rows:
        show_listing(_corrections(corrections.rows), console)
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


def _totals(balance: Balance) -> Listing:
    state = balance.wallet.state
    return Listing(
        title=Text.assemble(
            f"Wallet of {balance.wallet.subscriber_id} (",
            (state, "green" if state is WalletState.ACTIVE else "bold red"),
            ")",
        ),
        columns=(Column(""), Column("credits", is_number=True)),
        rows=(
            ("available", format_credits(balance.available_microcredits)),
            ("reserved", format_credits(balance.reserved_microcredits)),
        ),
    )


def _grants(grants: tuple[Grant, ...], now_us: int) -> Listing:
    return Listing(
        title="Grants, in credits, newest first",
        columns=(
            Column("grant"),
            Column("source"),
            Column("priority", is_number=True),
            Column("granted", is_number=True),
            Column("remaining", is_number=True),
            Column("from"),
            Column("expires"),
            Column("rolls over up to", is_number=True),
        ),
        rows=tuple(
            (
                grant.grant_id,
                grant.source,
                str(grant.priority),
                format_credits(grant.amount_microcredits),
                Text(format_credits(grant.remaining_microcredits), "bold" if grant.remaining_microcredits else "dim"),
                time_of(grant.effective_time_us) if grant.effective_time_us > now_us else "",
                Text("reversed", "red") if grant.reverse_time_us is not None else time_of(grant.expire_time_us),
                format_credits(grant.rollover_microcredits_max) if grant.rollover_microcredits_max else "",
            )
            for grant in grants
        ),
    )


def _corrections(corrections: tuple[Correction, ...]) -> Listing:
    return Listing(
        title="Done by hand, in credits, newest first",
        columns=(
            Column("when"),
            Column("what"),
            Column("credits", is_number=True),
            Column("by"),
            Column("why"),
            Column("id"),
        ),
        rows=tuple(
            (
                time_of(correction.create_time_us),
                correction.kind,
                format_credits(correction.amount_microcredits) if correction.amount_microcredits else "",
                correction.actor,
                correction.reason,
                correction.correction_id,
            )
            for correction in corrections
        ),
    )


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
    tell(write(store_of(config, store), lambda ledger: ledger.adjust(operation)))


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
    _set_state(store_of(config, store), subscriber, WalletState.SUSPENDED, reason, actor, correction_id)


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
    _set_state(store_of(config, store), subscriber, WalletState.ACTIVE, reason, actor, correction_id)


def _set_state(
    path: Path, subscriber: str, state: WalletState, reason: str, actor: str | None, correction_id: str | None
) -> None:
    operation = SetWalletState(
        correction_id=id_of(correction_id),
        subscriber_id=subscriber,
        state=state,
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )
    tell(write(path, lambda ledger: ledger.set_wallet_state(operation)))

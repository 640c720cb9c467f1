"""``metergate grant``: credits added to a wallet."""

from typing import Annotated
from uuid import uuid4

import typer

from metergate.cli.corrections import Actor, CorrectionId, Reason, actor_of, id_of, tell
from metergate.cli.parameters import (
    DEFAULT_CONFIG,
    ConfigFile,
    StorePath,
    SubscriberId,
    parse_amount,
    parse_duration_seconds,
    parse_duration_us,
    parse_id,
    parse_time_us,
    store_of,
)
from metergate.cli.store import WritableLedger, clock, write
from metergate.cli.terminal import credits_of, explain, time_of
from metergate.core.operations import AddGrant, Reverse
from metergate.core.rows import Grant, GrantSource

app = typer.Typer(help="Grants: credits added to a wallet.", no_args_is_help=True)

# Lower is drawn first; most grants need no opinion, and those that do find room on either side.
PRIORITY_DEFAULT = 100

# Pages of a look-up: one for almost every wallet.
GRANTS_PAGE_SIZE = 1_000


@app.command(epilog="Example: metergate grant add alice --credits 5 --source PLAN_CYCLE --expires-in 31d")
def add(
    subscriber: SubscriberId,
    amount: Annotated[int, typer.Option("--credits", parser=parse_amount, metavar="N", help="How many, as 5 or 0.25.")],
    source: Annotated[GrantSource, typer.Option(help="Where they come from.")] = GrantSource.TOP_UP,
    expires_in_us: Annotated[
        int | None,
        typer.Option(
            "--expires-in", parser=parse_duration_us, metavar="31d", help="Days (d), hours (h), minutes (m) of effect."
        ),
    ] = None,
    expire_time_us: Annotated[
        int | None,
        typer.Option("--expire-time", parser=parse_time_us, metavar="TIME", help="As 2027-01-01T00:00:00+08:00."),
    ] = None,
    effective_time_us: Annotated[
        int | None,
        typer.Option(
            "--effective-time", parser=parse_time_us, metavar="TIME", help="Not to be spent before it; else at once."
        ),
    ] = None,
    rollover_max: Annotated[
        int,
        typer.Option(
            "--rollover-max-credits",
            parser=parse_amount,
            metavar="N",
            help="When they expire, at most so many of what is left go on in another grant.",
        ),
    ] = "0",  # type: ignore[assignment]  # typer parses defaults too
    rollover_seconds: Annotated[
        int | None,
        typer.Option(
            "--rollover-for", parser=parse_duration_seconds, metavar="31d", help="How long those live after that."
        ),
    ] = None,
    priority: Annotated[int, typer.Option(min=0, max=1_000, help="Lower is drawn first.")] = PRIORITY_DEFAULT,
    grant_id: Annotated[
        str | None,
        typer.Option("--id", parser=parse_id, metavar="ID", help="Makes repeating the command harmless."),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Add credits to a wallet and print the grant's id. They never expire unless an expiry is given."""
    if expires_in_us is not None and expire_time_us is not None:
        raise typer.BadParameter("give either --expires-in or --expire-time")
    if bool(rollover_max) != (rollover_seconds is not None):
        raise typer.BadParameter("give both --rollover-max-credits and --rollover-for, or neither")
    now_us = clock.now_us()
    begin_us = now_us if effective_time_us is None else effective_time_us
    grant = Grant(
        grant_id=grant_id or uuid4().hex,
        subscriber_id=subscriber,
        source=source,
        priority=priority,
        amount_microcredits=amount,
        remaining_microcredits=amount,
        effective_time_us=begin_us,
        expire_time_us=expire_time_us if expires_in_us is None else begin_us + expires_in_us,
        create_time_us=now_us,
        rollover_microcredits_max=rollover_max,
        rollover_seconds=rollover_seconds or 0,
    )
    has_begin = effective_time_us is not None
    added = write(store_of(config, store), lambda ledger: _add(ledger, grant, expires_in_us, has_begin=has_begin))
    _tell_added(added, has_begin=has_begin)
    typer.echo(added.grant_id)


def _tell_added(grant: Grant, *, has_begin: bool) -> None:
    begin = f", from {time_of(grant.effective_time_us)} on" if has_begin else ""
    amount = credits_of(grant.amount_microcredits)
    explain(f"{amount} for {grant.subscriber_id}{begin}, expiring: {time_of(grant.expire_time_us)}")
    if grant.rollover_microcredits_max:
        explain(f"at most {credits_of(grant.rollover_microcredits_max)} of it roll over then")


async def _add(ledger: WritableLedger, grant: Grant, expires_in_us: int | None, *, has_begin: bool) -> Grant:
    first = None if has_begin else await _find(ledger, grant)
    return await ledger.add_grant(AddGrant(grant=grant if first is None else _as_of(first, grant, expires_in_us)))


async def _find(ledger: WritableLedger, grant: Grant) -> Grant | None:
    cursor: str | None = None
    while True:
        page = await ledger.list_grants(grant.subscriber_id, cursor=cursor, size=GRANTS_PAGE_SIZE)
        for other in page.rows:
            if other.grant_id == grant.grant_id:
                return other
        cursor = page.next_cursor
        if cursor is None:
            return None


def _as_of(first: Grant, grant: Grant, expires_in_us: int | None) -> Grant:
    """The grant as the same command would have made it then: "31 days from now" said twice is the same content."""
    return Grant(
        grant_id=grant.grant_id,
        subscriber_id=grant.subscriber_id,
        source=grant.source,
        priority=grant.priority,
        amount_microcredits=grant.amount_microcredits,
        remaining_microcredits=grant.amount_microcredits,
        effective_time_us=first.effective_time_us,
        expire_time_us=grant.expire_time_us if expires_in_us is None else first.effective_time_us + expires_in_us,
        create_time_us=first.create_time_us,
        rollover_microcredits_max=grant.rollover_microcredits_max,
        rollover_seconds=grant.rollover_seconds,
    )


@app.command(epilog="Example: metergate grant reverse alice june --reason 'chargeback 4711' --id chargeback-4711")
def reverse(
    subscriber: SubscriberId,
    grant_id: Annotated[
        str, typer.Argument(metavar="GRANT", help="The grant whose payment was taken back.", parser=parse_id)
    ],
    reason: Reason,
    actor: Actor = None,
    correction_id: CorrectionId = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Take back what is left of a grant whose payment was taken back, also while a gateway serves.

    If that is not all of it, the wallet is suspended; see: metergate wallet resume --help. Prints the reversal's id.
    """
    operation = Reverse(
        correction_id=id_of(correction_id),
        subscriber_id=subscriber,
        grant_id=grant_id,
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )
    tell(write(store_of(config, store), lambda ledger: ledger.reverse(operation)))

"""``metergate charge``: what requests were charged."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
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
    parse_id,
    store_of,
)
from metergate.cli.store import clock, reading, write
from metergate.cli.tables import Cell, Column, Listing, show
from metergate.cli.terminal import explain, output, time_of
from metergate.core.credits import format_credits
from metergate.core.operations import Refund
from metergate.core.reservation import CloseCause
from metergate.core.rows import Charge, CorrectionKind
from metergate.ports import ChargeFilter

app = typer.Typer(help="Charges: what requests were charged.", no_args_is_help=True)


# As many as a person reads; the newest come first.
CHARGES_SHOWN_MAX = 50

# Rows of one look into the store.
PAGE_ROWS = 500


@app.command("list", epilog="Example: metergate charge list alice --crashed")
def list_charges(
    subscriber: SubscriberId,
    is_crashed: Annotated[
        bool, typer.Option("--crashed", help="Only those that a dead gateway left, which apps may claim back of.")
    ] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """List a subscriber's newest charges, also while a gateway serves.

    What a charge was, what of it is known to have been delivered, and what went back. All that was charged was also
    delivered, unless the gateway died: then an app can claim back no more than the difference.
    """
    charges, refunded, are_all = asyncio.run(_read(store_of(config, store), subscriber, is_crashed=is_crashed))
    show(_listing(charges, refunded), output())
    if not are_all:
        explain(f"only the newest {CHARGES_SHOWN_MAX} are shown; `metergate ledger export charges` writes all")


async def _read(
    path: Path, subscriber_id: str, *, is_crashed: bool
) -> tuple[Sequence[Charge], Mapping[str, int], bool]:
    """The charges, what was refunded of each, and whether there are no more."""
    found: list[Charge] = []
    refunded: Counter[str] = Counter()
    async with reading(path) as ledger:
        await ledger.balance(subscriber_id, None, clock.now_us())  # or there is no such subscriber
        cursor = None
        while len(found) <= CHARGES_SHOWN_MAX:
            page = await ledger.list_charges(subscriber_id, ChargeFilter(), cursor=cursor, size=PAGE_ROWS)
            found += [row for row in page.rows if not is_crashed or row.close_cause is CloseCause.CRASH]
            cursor = page.next_cursor
            if cursor is None:
                break
        shown = found[:CHARGES_SHOWN_MAX]
        wanted = {charge.charge_id for charge in shown}
        cursor = None
        while wanted:
            corrections = await ledger.list_corrections(subscriber_id, cursor=cursor, size=PAGE_ROWS)
            for row in corrections.rows:
                if row.kind is CorrectionKind.REFUND and row.charge_id in wanted:
                    refunded[row.charge_id] += row.amount_microcredits
            cursor = corrections.next_cursor
            if cursor is None:
                break
    return shown, refunded, len(found) <= CHARGES_SHOWN_MAX


def _listing(charges: Sequence[Charge], refunded: Mapping[str, int]) -> Listing:
    return Listing(
        title="Charges, in credits, newest first",
        columns=(
            *map(Column, ("settled", "charge", "app", "model", "ended by")),
            *(Column(heading, is_number=True) for heading in ("charged", "delivered", "refunded", "claim at most")),
        ),
        rows=tuple(_row(charge, refunded.get(charge.charge_id, 0)) for charge in charges),
    )


def _row(charge: Charge, refunded_microcredits: int) -> tuple[Cell, ...]:
    claim = charge.charged_microcredits - charge.delivered_microcredits - refunded_microcredits
    return (
        time_of(charge.settle_time_us),
        charge.charge_id,
        charge.app_id or "(own)",
        charge.model_id,
        Text(charge.close_cause, "red") if charge.close_cause is CloseCause.CRASH else charge.close_cause.value,
        format_credits(charge.charged_microcredits),
        format_credits(charge.delivered_microcredits),
        format_credits(refunded_microcredits) if refunded_microcredits else "",
        Text(format_credits(claim), "bold") if claim > 0 else "",
    )


@app.command(epilog="Example: metergate charge refund alice 0f3c... --credits 0.5 --reason 'was cut' --id case-7")
def refund(
    subscriber: SubscriberId,
    charge_id: Annotated[
        str, typer.Argument(metavar="CHARGE", help="Its id, as the receipt names it.", parser=parse_id)
    ],
    amount: Annotated[int, typer.Option("--credits", parser=parse_amount, metavar="N", help="How many, as 5 or 0.25.")],
    reason: Reason,
    grant_seconds: Annotated[
        int,
        typer.Option(
            "--expires-in",
            parser=parse_duration_seconds,
            metavar="30d",
            help="How long credit lives whose grant has expired since: days (d), hours (h), minutes (m).",
        ),
    ] = "30d",  # type: ignore[assignment]  # typer parses defaults too
    actor: Actor = None,
    correction_id: CorrectionId = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Give back part of a charge, also while a gateway serves: never more than was charged and not refunded yet.

    It goes back to the grants that paid it, the last drawn first. Prints the refund's id.
    """
    operation = Refund(
        correction_id=id_of(correction_id),
        subscriber_id=subscriber,
        charge_id=charge_id,
        amount_microcredits=amount,
        grant_seconds=grant_seconds,
        reason=reason,
        actor=actor_of(actor),
        now_us=clock.now_us(),
    )
    tell(write(store_of(config, store), lambda ledger: ledger.refund(operation)))

"""``metergate charge``: what requests were charged."""

from typing import Annotated

import typer

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
from metergate.cli.store import clock, write
from metergate.core.operations import Refund

app = typer.Typer(help="Charges: what requests were charged.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Charges: what requests were charged."""


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

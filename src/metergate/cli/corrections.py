"""What the commands that correct a wallet share: their options, and how they tell what was done."""

import getpass
from typing import Annotated
from uuid import uuid4

import typer

from metergate.cli.parameters import parse_id
from metergate.cli.terminal import credits_of, explain
from metergate.core.rows import Correction, CorrectionKind

Reason = Annotated[str, typer.Option(help="Why; it is kept with the record.", metavar="TEXT")]
Actor = Annotated[
    str | None, typer.Option(help="Who does it; else the user of this machine who types.", metavar="NAME")
]
CorrectionId = Annotated[
    str | None,
    typer.Option("--id", parser=parse_id, metavar="ID", help="Makes repeating the command harmless."),
]


def actor_of(actor: str | None) -> str:
    """Who does it."""
    if actor is not None:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        raise typer.BadParameter("say who does it: --actor NAME") from None


def id_of(correction_id: str | None) -> str:
    """The record's id; a new one each time unless it is given."""
    return correction_id or uuid4().hex


def tell(correction: Correction) -> None:
    """Print the record's id, and on stderr what was done."""
    explain(_sentence(correction))
    typer.echo(correction.correction_id)


def _sentence(correction: Correction) -> str:
    amount, whom = credits_of(abs(correction.amount_microcredits)), correction.subscriber_id
    match correction.kind:
        case CorrectionKind.REFUND:
            return f"{amount} of charge {correction.charge_id} went back to {whom}"
        case CorrectionKind.ADJUSTMENT:
            return f"{amount} given to {whom}" if correction.amount_microcredits > 0 else f"{amount} taken from {whom}"
        case CorrectionKind.REVERSAL:
            taken = f"{amount} of grant {correction.grant_id} taken back from {whom}"
            if not correction.shortfall_microcredits:
                return taken
            missing = credits_of(correction.shortfall_microcredits)
            return f"{taken}; the wallet is suspended for the {missing} that were spent or are set aside"
        case CorrectionKind.SUSPENSION:
            return f"the wallet of {whom} is suspended"
        case CorrectionKind.RESUMPTION:
            return f"the wallet of {whom} may be spent from again"

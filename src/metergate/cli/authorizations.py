"""``metergate authorization``: a subscriber's consents that apps may spend, each with its keys."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from metergate.cli.keys import KEYS_SHOWN_MAX, keys_of
from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, SubscriberId, parse_id, store_of
from metergate.cli.store import clock, write
from metergate.cli.tables import Cell, Column, Listing, show
from metergate.cli.terminal import explain, output, time_of
from metergate.core.credits import format_credits
from metergate.core.rows import Authorization
from metergate.ports import Grantee

app = typer.Typer(help="Consents that apps may spend a subscriber's credits.", no_args_is_help=True)


@app.command(epilog="Example: metergate authorization revoke 0f3c...")
def revoke(
    authorization_id: Annotated[
        str, typer.Argument(metavar="AUTHORIZATION_ID", help="As `authorization list` shows it.", parser=parse_id)
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Revoke a consent with all its keys, for ever, also while a gateway serves. Again: the first time stands.

    What runs ends where the credit that it has set aside ends.
    """
    path = store_of(config, store)
    revoke_time_us = write(path, lambda ledger: ledger.revoke_authorization(authorization_id, clock.now_us()))
    explain(f"authorization {authorization_id} is revoked since {time_of(revoke_time_us)}")


@app.command("list", epilog="Example: metergate authorization list alice")
def list_authorizations(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """List a subscriber's consents that have keys, oldest first, also while a gateway serves."""
    grantees, are_all = asyncio.run(keys_of(store_of(config, store), subscriber))
    show(_listing(grantees), output())
    if not are_all:
        explain(f"only those of {KEYS_SHOWN_MAX} keys are shown")


def _listing(grantees: Sequence[Grantee]) -> Listing:
    authorizations = {grantee.authorization.authorization_id: grantee.authorization for grantee in grantees}
    keys = Counter(grantee.key.authorization_id for grantee in grantees)
    return Listing(
        title="Authorizations, in credits, oldest first",
        columns=(
            Column("authorization"),
            Column("app"),
            Column("keys", is_number=True),
            Column("charged", is_number=True),
            Column("of at most", is_number=True),
            Column("revoked"),
        ),
        rows=tuple(
            _row(authorization, keys[authorization.authorization_id])
            for authorization in sorted(authorizations.values(), key=lambda row: row.create_time_us)
        ),
    )


def _row(authorization: Authorization, keys: int) -> tuple[Cell, ...]:
    cap, revoke_time_us = authorization.cap_microcredits, authorization.revoke_time_us
    return (
        authorization.authorization_id,
        authorization.app_id or "(own)",
        f"{keys:,}",
        format_credits(authorization.charged_microcredits),
        "" if cap is None else format_credits(cap),
        "" if revoke_time_us is None else Text(time_of(revoke_time_us), "red"),
    )

"""``metergate key``: bearer keys, and the consent that an app's key stands for."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.text import Text

from metergate.cli.parameters import (
    DEFAULT_CONFIG,
    ConfigFile,
    StorePath,
    SubscriberId,
    parse_amount,
    parse_duration_us,
    parse_id,
    store_of,
)
from metergate.cli.store import WritableLedger, clock, reading, write
from metergate.cli.tables import Cell, Column, Listing, show
from metergate.cli.terminal import explain, output, time_of
from metergate.core.keys import KEY_SECRET_BYTES, format_key, hash_key, prefix_of
from metergate.core.operations import AddAuthorization
from metergate.core.rows import ApiKey, Authorization, Channel
from metergate.ports import Grantee

# As many as a person reads; almost every subscriber has a few.
KEYS_SHOWN_MAX = 1_000

app = typer.Typer(help="Bearer keys, and the consent that an app's key stands for.", no_args_is_help=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models a key may use; empty: every model."""

    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Models":
        """Model ids between commas, each once, in a stable order."""
        return cls(ids=tuple(sorted({parse_id(model_id.strip()) for model_id in text.split(",")})))


@app.command(epilog="Example: KEY=$(metergate key issue alice --app notes --channel APP --cap-credits 2)")
def issue(
    subscriber: SubscriberId,
    app_id: Annotated[
        str | None,
        typer.Option(
            "--app", parser=parse_id, metavar="APP", help="The app that may spend; else the subscriber's own."
        ),
    ] = None,
    channel: Annotated[Channel, typer.Option(help="Through what it is spent.")] = Channel.APP,
    cap: Annotated[
        int | None,
        typer.Option("--cap-credits", parser=parse_amount, metavar="N", help="The most it may ever spend."),
    ] = None,
    models: Annotated[
        Models | None,
        typer.Option(parser=Models.parse, metavar="A,B", help="The only models it may use; else every model."),
    ] = None,
    expires_in_us: Annotated[
        int | None,
        typer.Option("--expires-in", parser=parse_duration_us, metavar="90d", help="Days (d), hours (h), minutes (m)."),
    ] = None,
    authorization_id: Annotated[
        str | None,
        typer.Option(
            "--authorization", parser=parse_id, metavar="ID", help="Issue another key of this consent, to rotate keys."
        ),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Issue a key and print it, once: only its hash is kept. It never expires unless an expiry is given.

    Everything else is written to stderr.
    """
    now_us = clock.now_us()
    authorization = Authorization(
        authorization_id=authorization_id or uuid4().hex,
        subscriber_id=subscriber,
        app_id=app_id or "",
        channel=channel,
        cap_microcredits=cap,
        allowed_models=() if models is None else models.ids,
        charged_microcredits=0,
        reserved_microcredits=0,
        create_time_us=now_us,
        revoke_time_us=None,
    )
    secret = format_key(os.urandom(KEY_SECRET_BYTES))
    key = ApiKey(
        key_id=uuid4().hex,
        secret_hash=hash_key(secret),
        authorization_id=authorization.authorization_id,
        create_time_us=now_us,
        revoke_time_us=None,
        prefix=prefix_of(secret),
        expire_time_us=None if expires_in_us is None else now_us + expires_in_us,
    )
    write(store_of(config, store), lambda ledger: _issue(ledger, authorization, key))
    explain(
        f"key {key.key_id} of authorization {authorization.authorization_id}, expiring: {time_of(key.expire_time_us)}; "
        "it is shown only now:"
    )
    typer.echo(secret)


async def _issue(ledger: WritableLedger, authorization: Authorization, key: ApiKey) -> None:
    await ledger.add_authorization(AddAuthorization(authorization=authorization))
    await ledger.add_key(key)


@app.command(epilog="Example: metergate key revoke 0f3c...")
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="As `key issue` wrote it to stderr.", parser=parse_id)
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Revoke a key, for ever, also while a gateway serves. Again: the first time stands."""
    key = write(store_of(config, store), lambda ledger: ledger.revoke_key(key_id, clock.now_us()))
    explain(f"key {key_id} is revoked since {time_of(key.revoke_time_us)}")


@app.command("list", epilog="Example: metergate key list alice")
def list_keys(subscriber: SubscriberId, config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """List a subscriber's keys, oldest first, also while a gateway serves. When they were used is a minute late."""
    grantees, are_all = asyncio.run(keys_of(store_of(config, store), subscriber))
    show(_listing(grantees), output())
    if not are_all:
        explain(f"only {KEYS_SHOWN_MAX} keys are shown")


async def keys_of(path: Path, subscriber_id: str) -> tuple[list[Grantee], bool]:
    """A subscriber's keys, oldest first, and whether they are all; ResourceNotFound without such a subscriber."""
    async with reading(path) as ledger:
        await ledger.balance(subscriber_id, None, clock.now_us())
        page = await ledger.list_keys(subscriber_id, cursor=None, size=KEYS_SHOWN_MAX)
    return sorted(page.rows, key=lambda grantee: grantee.key.create_time_us), page.next_cursor is None


def _listing(grantees: list[Grantee]) -> Listing:
    rows: list[tuple[Cell, ...]] = []
    for grantee in grantees:
        key = grantee.key
        revoke_time_us = key.revoke_time_us or grantee.authorization.revoke_time_us
        rows.append(
            (
                key.key_id,
                key.prefix,
                grantee.authorization.app_id or "(own)",
                time_of(key.create_time_us),
                time_of(key.expire_time_us),
                time_of(key.last_used_time_us),
                "" if revoke_time_us is None else Text(time_of(revoke_time_us), "red"),
            )
        )
    headings = ("key", "begins with", "app", "created", "expires", "last used", "revoked")
    return Listing(title="Keys, oldest first", columns=tuple(map(Column, headings)), rows=tuple(rows))

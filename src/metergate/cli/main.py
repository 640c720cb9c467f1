"""The command line: one module a group of commands, and the one place where errors become exit codes.

Exit codes: 0 done; 1 the ledger's books differ; 2 the command, the configuration or the store was refused; 3 anything
else went wrong: nobody may take that for books that differ.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from metergate.cli import (
    authorizations,
    charges,
    configuration,
    grants,
    keys,
    ledger,
    ledger_files,
    serving,
    subscribers,
    usage,
    wallets,
)
from metergate.cli.terminal import explain
from metergate.core.errors import MetergateError

REFUSED = 2
UNEXPECTED = 3

app = typer.Typer(
    name="metergate",
    help="Sell AI tokens as prepaid credits: debited, durably, before every delivery.",
    epilog="Begin with: metergate subscriber create --help, or read the README.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("serve", epilog="Example: metergate serve --config metergate.toml")(serving.serve)
app.add_typer(configuration.app, name="config")
app.add_typer(subscribers.app, name="subscriber")
app.add_typer(grants.app, name="grant")
app.add_typer(keys.app, name="key")
app.add_typer(authorizations.app, name="authorization")
app.add_typer(wallets.app, name="wallet")
app.add_typer(charges.app, name="charge")
ledger.app.command("backup", epilog="Example: metergate ledger backup /backups/2026-12-31.db")(ledger_files.backup)
ledger.app.command("restore", epilog="Example: metergate ledger restore /backups/2026-12-31.db")(ledger_files.restore)
ledger.app.command("compact", epilog="Example: metergate ledger compact")(ledger_files.compact)
ledger.app.command("export", epilog="Example: metergate ledger export charges --format csv --output charges.csv")(
    ledger_files.export
)
app.add_typer(usage.app, name="usage")
app.add_typer(ledger.app, name="ledger")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metergate {version('metergate')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Sell AI tokens as prepaid credits: debited, durably, before every delivery."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = _exit_code(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has left
        _write_nowhere()
        return UNEXPECTED
    except MetergateError as exc:
        explain(f"error: {exc}")
        return REFUSED
    except Exception as exc:  # noqa: BLE001 - a defect; a traceback helps nobody who types a command
        explain(f"error: unexpected {type(exc).__name__}: {' '.join(str(exc).split())}")
        return UNEXPECTED
    return code


def _exit_code(arguments: Sequence[str] | None) -> int:
    """Typer ends every command by exiting; also, with 1, after an error of its own that it has shown."""
    try:
        app(arguments, prog_name="metergate")
    except SystemExit as exc:
        is_ours = isinstance(exc.__context__, typer.Exit)
        code = exc.code if isinstance(exc.code, int) else 0
        return UNEXPECTED if code == ledger.DIFFERENT and not is_ours else code
    return 0


def _write_nowhere() -> None:
    """What is still buffered cannot be written: without this, Python would fail at it once more when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

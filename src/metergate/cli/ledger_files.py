"""``metergate ledger backup``, ``restore`` and ``export``: the ledger in files of its own."""

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile, StorePath, check_order, parse_time_us, store_of
from metergate.cli.store import reading
from metergate.cli.terminal import errors, explain, showing_progress
from metergate.cli.verifying import audit_store, tell
from metergate.core.errors import BackupRefused
from metergate.core.times import TIME_US_MAX, TIME_US_MIN
from metergate.ports import Times
from metergate.stores.exporting import Exported, ExportFormat, export_charges, export_transfers
from metergate.stores.sqlite.backing_up import Restoration, copy_ledger
from metergate.stores.sqlite.compacting import compact as compact_ledger
from metergate.stores.whole_files import WholeFile

DIFFERENT = 1


class Exportable(StrEnum):
    """What can be exported."""

    CHARGES = "charges"
    TRANSFERS = "transfers"


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup; it must not be there yet.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Copy the ledger as it is now into a file, also while a gateway serves, and verify the copy.

    A copy whose books differ is kept, and the command exits with 1: it is evidence.
    """
    path = store_of(config, store)
    with WholeFile(file) as whole:
        with showing_progress() as progress:
            bar = progress.add_task("pages")
            copy_ledger(path, whole.partial, lambda done, total: progress.update(bar, completed=done, total=total))
        verdict = asyncio.run(audit_store(whole.partial))
        whole.keep()
    adds_up = tell(verdict, errors())
    typer.echo(file)
    if not adds_up:
        raise typer.Exit(DIFFERENT)


def restore(
    file: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that `ledger backup` made.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Put a backup in the store's place, if it verifies; refused while a gateway serves. What happened since is lost.

    The old store stays beside it, under a name that is printed.
    """
    with Restoration(file, store_of(config, store)) as restoration:
        with showing_progress() as progress:
            bar = progress.add_task("pages")
            restoration.prepare(lambda done, total: progress.update(bar, completed=done, total=total))
        if not tell(asyncio.run(audit_store(restoration.copy)), errors()):
            raise BackupRefused(path=str(file), problem="its books differ")
        kept = restoration.put_in_place()
    explain("restored; the next start of the gateway settles what was running when the backup was made")
    if kept is not None:
        explain("what was in its place is now:")
        typer.echo(kept)


def compact(config: ConfigFile = DEFAULT_CONFIG, store: StorePath = None) -> None:
    """Write the store anew, with nothing left in its unused space; refused while a gateway serves.

    It needs as much room on the disk again, and takes some seconds a gigabyte.
    """
    path = store_of(config, store)
    bytes_before = path.stat().st_size if path.is_file() else 0
    compact_ledger(path)
    explain(f"written anew: {decimal(bytes_before)} before, {decimal(path.stat().st_size)} now")


def export(
    what: Annotated[Exportable, typer.Argument(help="What to export.")],
    file: Annotated[Path, typer.Option("--output", metavar="FILE", help="It must not be there yet.")],
    file_format: Annotated[ExportFormat, typer.Option("--format", help="How it is written.")] = ExportFormat.JSONL,
    from_us: Annotated[
        int | None,
        typer.Option("--from", parser=parse_time_us, metavar="TIME", help="The first, as 2026-12-01T00:00:00+08:00."),
    ] = None,
    until_us: Annotated[
        int | None, typer.Option("--until", parser=parse_time_us, metavar="TIME", help="The end, itself not included.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
) -> None:
    """Write charges, by when they were settled, or transfers, by when they were posted, to a file; also while serving.

    Prints a line of JSON with how many there are and the file's SHA-256. Ids and amounts only; nothing of any content.
    """
    times = Times(
        first_us=TIME_US_MIN if from_us is None else from_us, end_us=TIME_US_MAX if until_us is None else until_us
    )
    check_order(times.first_us < times.end_us)
    exported = asyncio.run(_export(store_of(config, store), what, file, file_format, times))
    typer.echo(json.dumps({"file": str(file), "rows": exported.rows, "sha256": exported.sha256}))


async def _export(path: Path, what: Exportable, file: Path, file_format: ExportFormat, times: Times) -> Exported:
    with showing_progress() as progress:
        bar = progress.add_task("rows", total=None)

        def told(rows: int) -> None:
            progress.update(bar, completed=rows)

        async with reading(path) as ledger:
            if what is Exportable.CHARGES:
                return await export_charges(ledger.read_charges(times), file, file_format, told)
            return await export_transfers(ledger.read_transfers(times), file, file_format, told)

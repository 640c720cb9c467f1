"""Charges and transfers in files for other programs: JSON Lines, CSV, Parquet; a column has its unit in its name.

Written page by page, so that memory does not grow with their number; a file is there whole or not at all.
"""

import csv
import hashlib
import io
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from metergate.core.errors import FileRefused
from metergate.core.rows import Charge, Transfer
from metergate.core.usage import TokenClass, Usage
from metergate.stores.whole_files import WholeFile

Row = TypeVar("Row")
Value = str | int | bool | None
Record = dict[str, Value]
Write = Callable[[Sequence[Record]], None]


class ExportFormat(StrEnum):
    """How a file is written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written."""

    rows: int
    sha256: str  # of the whole file, in hexadecimal


@dataclass(frozen=True, slots=True)
class _Column(Generic[Row]):
    kind: type  # str, int or bool; each may be None
    value: Callable[[Row], Value]


TRANSFER_COLUMNS: Mapping[str, _Column[Transfer]] = {
    "subscriber_id": _Column(str, lambda row: row.subscriber_id),
    "sequence": _Column(int, lambda row: row.sequence),
    "kind": _Column(str, lambda row: row.kind.value),
    "debit_account": _Column(str, lambda row: row.debit_account),
    "credit_account": _Column(str, lambda row: row.credit_account),
    "amount_microcredits": _Column(int, lambda row: row.amount_microcredits),
    "grant_id": _Column(str, lambda row: row.grant_id),
    "charge_id": _Column(str, lambda row: row.charge_id),
    "correction_id": _Column(str, lambda row: row.correction_id),
    "create_time_us": _Column(int, lambda row: row.create_time_us),
}


def _tokens(prefix: str, usage: Callable[[Charge], Usage | None]) -> dict[str, _Column[Charge]]:
    def of_class(token_class: TokenClass) -> Callable[[Charge], Value]:
        def tokens(row: Charge) -> Value:
            counted = usage(row)
            return None if counted is None else counted.get(token_class)

        return tokens

    return {f"{prefix}_{kind.value.lower()}_tokens": _Column(int, of_class(kind)) for kind in TokenClass}


CHARGE_COLUMNS: Mapping[str, _Column[Charge]] = {
    "charge_id": _Column(str, lambda row: row.charge_id),
    "reservation_id": _Column(str, lambda row: row.reservation_id),
    "subscriber_id": _Column(str, lambda row: row.subscriber_id),
    "authorization_id": _Column(str, lambda row: row.authorization_id),
    "app_id": _Column(str, lambda row: row.app_id),
    "channel": _Column(str, lambda row: row.channel.value),
    "request_id": _Column(str, lambda row: row.request_id),
    "model_id": _Column(str, lambda row: row.model_id),
    "provider_id": _Column(str, lambda row: row.provider_id),
    "backend_ids": _Column(str, lambda row: " ".join(attempt.backend_id for attempt in row.attempts)),
    "counting_source": _Column(str, lambda row: row.counting_source.value),
    **_tokens("counted", lambda row: row.usage_counted),
    **_tokens("reported", lambda row: row.usage_reported),
    "usage_mismatch": _Column(bool, lambda row: row.usage_mismatch),
    "rate_card_id": _Column(str, lambda row: row.rate_card_id),
    "captured_microcredits": _Column(int, lambda row: row.captured_microcredits),
    "charged_microcredits": _Column(int, lambda row: row.charged_microcredits),
    "delivered_microcredits": _Column(int, lambda row: row.delivered_microcredits),
    "finish_reason": _Column(str, lambda row: row.finish_reason.value),
    "close_cause": _Column(str, lambda row: row.close_cause.value),
    "create_time_us": _Column(int, lambda row: row.create_time_us),
    "settle_time_us": _Column(int, lambda row: row.settle_time_us),
}


async def export_transfers(
    pages: AsyncGenerator[Sequence[Transfer], None], file: Path, file_format: ExportFormat, told: Callable[[int], None]
) -> Exported:
    """Write transfers; ``told`` hears how many are written. FileRefused if the file cannot be written."""
    return await _export(pages, TRANSFER_COLUMNS, file, file_format, told)


async def export_charges(
    pages: AsyncGenerator[Sequence[Charge], None], file: Path, file_format: ExportFormat, told: Callable[[int], None]
) -> Exported:
    """Write charges; ``told`` hears how many are written. FileRefused if the file cannot be written."""
    return await _export(pages, CHARGE_COLUMNS, file, file_format, told)


async def _export(
    pages: AsyncGenerator[Sequence[Row], None],
    columns: Mapping[str, _Column[Row]],
    file: Path,
    file_format: ExportFormat,
    told: Callable[[int], None],
) -> Exported:
    kinds = {name: column.kind for name, column in columns.items()}
    rows = 0
    if file_format is ExportFormat.PARQUET and find_spec("pyarrow") is None:
        raise FileRefused(path=str(file), problem="Parquet needs pyarrow: pip install 'metergate[parquet]'")
    async with aclosing(pages):
        with WholeFile(file) as whole:
            with _WRITERS[file_format](whole.partial, kinds) as write:
                async for page in pages:
                    write([{name: column.value(row) for name, column in columns.items()} for row in page])
                    rows += len(page)
                    told(rows)
            with open(whole.partial, "rb") as written:  # noqa: ASYNC230 - nothing else is waited for
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            whole.keep()
    return Exported(rows=rows, sha256=sha256)


@contextmanager
def _json_lines(path: Path, kinds: Mapping[str, type]) -> Iterator[Write]:
    encoder = msgspec.json.Encoder()
    with open(path, "wb") as file:
        yield lambda records: file.writelines(encoder.encode(record) + b"\n" for record in records)


@contextmanager
def _csv(path: Path, kinds: Mapping[str, type]) -> Iterator[Write]:
    """A header, then a row a record; nothing for what is not known."""
    with open(path, "wb") as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(kinds), lineterminator="\n")
        writer.writeheader()
        yield writer.writerows


@contextmanager
def _parquet(path: Path, kinds: Mapping[str, type]) -> Iterator[Write]:
    """A row group a page."""
    # Imported only where it is wanted: an optional extra of 50 MB.
    import pyarrow
    from pyarrow import parquet

    types: dict[type, Any] = {str: pyarrow.string(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        yield lambda records: writer.write_table(pyarrow.Table.from_pylist(records, schema=schema))


_WRITERS = {ExportFormat.JSONL: _json_lines, ExportFormat.CSV: _csv, ExportFormat.PARQUET: _parquet}

"""An export holds every row of its time, counted and hashed, in a file that is whole or not there."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import csv
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import NOW_US, a_grant, a_settle, open_wallet, reserve
from pyarrow import parquet

from metergate.core.errors import FileRefused, StoreUnavailable
from metergate.core.rows import Transfer
from metergate.core.times import TIME_US_MAX
from metergate.ports import LedgerStore, Times
from metergate.stores import exporting
from metergate.stores.exporting import ExportFormat, export_charges, export_transfers
from metergate.stores.sqlite import reading_all

ALWAYS = Times(first_us=0, end_us=TIME_US_MAX)


@pytest.fixture
async def store(store: LedgerStore) -> LedgerStore:
    await open_wallet(store, a_grant(amount=1_000))
    for number in range(7):
        await reserve(store, f"res-{number}", request_id=f'r,"{number}"', now_us=NOW_US + number)
        settle = a_settle(10 + number, f"res-{number}", owner=store.owner, captured=20, now_us=NOW_US + number)
        await store.settle(settle)
    return store


def told(_rows: int) -> None:
    """Nobody looks."""


def read(file: Path, file_format: ExportFormat) -> list[dict[str, Any]]:
    match file_format:
        case ExportFormat.JSONL:
            return [json.loads(line) for line in file.read_text().splitlines()]
        case ExportFormat.CSV:
            with file.open(newline="") as text:
                return list(csv.DictReader(text))
        case ExportFormat.PARQUET:
            rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
            return rows


@pytest.mark.parametrize("file_format", ExportFormat)
async def test_every_charge_is_there_counted_and_hashed(
    store: LedgerStore, tmp_path: Path, file_format: ExportFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_all, "ALL_CHARGES", reading_all.ALL_CHARGES.replace("LIMIT 5000", "LIMIT 3"))
    monkeypatch.setattr(reading_all, "PAGE_ROWS", 3)
    file = tmp_path / "charges"
    exported = await export_charges(store.read_charges(ALWAYS), file, file_format, told)
    rows = read(file, file_format)
    assert exported.rows == len(rows) == 7
    assert exported.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [int(row["charged_microcredits"]) for row in rows] == [10, 11, 12, 13, 14, 15, 16]
    assert [row["request_id"] for row in rows] == [f'r,"{number}"' for number in range(7)]
    assert {row["reported_prompt_tokens"] for row in rows} == {"" if file_format is ExportFormat.CSV else None}
    assert {int(row["counted_completion_tokens"]) for row in rows} == {10, 11, 12, 13, 14, 15, 16}


@pytest.mark.parametrize("file_format", ExportFormat)
async def test_transfers_balance_by_account_as_the_roll_up_does(
    store: LedgerStore, tmp_path: Path, file_format: ExportFormat
) -> None:
    file = tmp_path / "transfers"
    await export_transfers(store.read_transfers(ALWAYS), file, file_format, told)
    revenue = sum(
        int(row["amount_microcredits"]) for row in read(file, file_format) if row["credit_account"] == "revenue"
    )
    assert revenue == (await store.account_balances())["revenue"].balance_microcredits


async def test_ranges_that_follow_each_other_hold_every_row_once(store: LedgerStore, tmp_path: Path) -> None:
    ids = []
    for number, (first_us, end_us) in enumerate(((0, NOW_US + 2), (NOW_US + 2, NOW_US + 5), (NOW_US + 5, TIME_US_MAX))):
        file = tmp_path / f"part-{number}"
        times = Times(first_us=first_us, end_us=end_us)
        exported = await export_charges(store.read_charges(times), file, ExportFormat.JSONL, told)
        part = [row["charge_id"] for row in read(file, ExportFormat.JSONL)]
        assert exported.rows == len(part)
        ids += part
    assert ids == [f"charge-of-res-{number}" for number in range(7)]


async def test_nothing_of_any_content_is_exported(store: LedgerStore, tmp_path: Path) -> None:
    file = tmp_path / "charges"
    await export_charges(store.read_charges(ALWAYS), file, ExportFormat.JSONL, told)
    assert b"content" not in file.read_bytes()


@pytest.mark.parametrize("file_format", ExportFormat)
async def test_an_export_that_fails_leaves_no_file(tmp_path: Path, file_format: ExportFormat) -> None:
    async def breaking() -> AsyncGenerator[Sequence[Transfer], None]:
        yield []
        raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        await export_transfers(breaking(), tmp_path / "transfers", file_format, told)
    assert list(tmp_path.iterdir()) == []


async def test_an_export_replaces_no_file(store: LedgerStore, tmp_path: Path) -> None:
    file = tmp_path / "charges"
    file.write_text("mine")
    with pytest.raises(FileRefused, match="it is there already"):
        await export_charges(store.read_charges(ALWAYS), file, ExportFormat.CSV, told)
    assert file.read_text() == "mine"


async def test_parquet_without_its_library_says_what_to_install(
    store: LedgerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(FileRefused, match=r"metergate\[parquet\]"):
        await export_charges(store.read_charges(ALWAYS), tmp_path / "charges", ExportFormat.PARQUET, told)

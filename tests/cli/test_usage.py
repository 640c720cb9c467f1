"""``metergate usage mismatch``: by backend and day, as a table and as JSON."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_rows import a_grant, a_settle, open_wallet, reserve

from metergate.cli.main import main
from metergate.clock import SystemClock
from metergate.core.usage import TokenClass, Usage
from metergate.stores.sqlite import SqliteLedgerStore


async def _charge(path: Path, reports: list[Usage | None]) -> None:
    clock = SystemClock()
    now_us = clock.now_us()
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="gateway-1", create=True)
    try:
        await open_wallet(store, a_grant(amount=10_000))
        for number, reported in enumerate(reports):
            name = f"res-{number}"
            await reserve(store, name, now_us=now_us)
            settle = a_settle(10, name, captured=10, owner=store.owner, now_us=now_us)
            assert settle.settlement is not None
            mismatch = reported is not None and reported.total() > 11
            settlement = replace(settle.settlement, usage_reported=reported, usage_mismatch=mismatch)
            await store.settle(replace(settle, settlement=settlement))
    finally:
        await store.close()


def _run(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code in (None, 0)
    return capfd.readouterr().out


def test_counted_and_reported_are_shown_by_backend_and_day(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.db"
    reports = [Usage.of({TokenClass.COMPLETION: tokens}) for tokens in (10, 11, 40)]
    asyncio.run(_charge(path, [*reports, None]))
    [row] = json.loads(_run(capfd, "usage", "mismatch", "--store", str(path), "--json"))
    expected = {
        "backend_id": "backend-1",
        "model_id": "model-1",
        "counting_source": "TOKENIZER",
        "charges": 4,
        "unreported_charges": 1,
        "mismatched_charges": 1,
        "counted_tokens": 30,
        "reported_tokens": 61,
        "difference_tokens": 31,
    }
    assert {name: value for name, value in row.items() if name != "day"} == expected
    table = _run(capfd, "usage", "mismatch", "--store", str(path))
    assert "difference" in table
    assert row["day"] in table
    assert "+31" in table


def test_without_charges_there_is_nothing_to_compare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ledger.db"
    asyncio.run(_charge(path, []))
    assert "No answers have ended" in _run(capfd, "usage", "mismatch", "--store", str(path))
    assert json.loads(_run(capfd, "usage", "mismatch", "--store", str(path), "--json")) == []

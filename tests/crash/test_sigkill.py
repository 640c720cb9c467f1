"""A gateway that is killed leaves its reservations to recovery (L5)."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_capture, available, differences, reserve

from metergate.core.errors import StoreRefused
from metergate.core.operations import CaptureStatus
from metergate.core.reservation import CloseCause, Owner
from metergate.core.rows import FinishReason
from metergate.ports import ChargeFilter
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore

VICTIM = Path(__file__).parent / "crash_victim.py"


async def test_a_killed_process_is_settled_at_what_it_had_captured(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    command = [sys.executable, str(VICTIM), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:  # noqa: ASYNC220 - returns at once
        try:
            assert victim.stdout is not None
            assert await asyncio.to_thread(victim.stdout.readline) == "ready\n"

            with pytest.raises(StoreRefused, match="another command is writing it"):
                await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="second", create=False)
            reader = await SqliteLedgerReader.open_read_only(path)
            balance = await reader.balance("alice", None, NOW_US)
            assert (balance.available_microcredits, balance.reserved_microcredits) == (800, 200)
            await reader.close()
        finally:
            victim.kill()

    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US + 5), owner_id="heir", create=False)
    assert await available(store) == 960
    (charge,) = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    assert (charge.charged_microcredits, charge.usage_counted.total(), charge.usage_reported) == (40, 40, None)
    assert (charge.close_cause, charge.finish_reason) == (CloseCause.CRASH, FinishReason.INTERRUPTED)
    assert await differences(store) == []
    late = await store.capture(a_capture(50, "captured", owner=Owner(owner_id="victim", epoch=1)))
    assert late.status is CaptureStatus.CLOSED
    assert (await reserve(store, "again", request_id="request-of-untouched")).reserved_microcredits == 100
    await store.close()

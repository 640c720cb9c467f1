"""Every store there is, opened empty; what a test leaves in it must add up."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import NOW_US, differences

from metergate.ports import LedgerStore
from metergate.stores.sqlite import SqliteLedgerStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    clock = FakeClock(NOW_US)
    opened: LedgerStore = (
        MemoryLedgerStore(clock=clock)
        if request.param == "memory"
        else await SqliteLedgerStore.open(tmp_path / "ledger.db", clock=clock, owner_id="gateway-1", create=True)
    )
    yield opened
    assert await differences(opened) == [], "every test leaves books that add up"
    await opened.close()

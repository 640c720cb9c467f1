"""Every store there is, opened empty; what a test leaves in it must add up."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from durability.workplace import fast_folder
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import NOW_US, differences

from metergate.ports import LedgerStore
from metergate.stores.sqlite import SqliteLedgerStore


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """What a store writes is tested here, not how long a disk takes to keep it."""
    with fast_folder() as folder:
        yield folder


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

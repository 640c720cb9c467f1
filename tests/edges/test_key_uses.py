import asyncio
import logging
from collections.abc import Mapping

import pytest
from edge_harness import APP_KEY, OWN_KEY, add_key
from fakes import FakeClock, MemoryLedgerStore

from metergate.core.errors import StoreUnavailable
from metergate.core.keys import hash_key
from metergate.edges import key_uses
from metergate.edges.key_uses import KeyUses


class CountingStore(MemoryLedgerStore):
    """Counts what is written, and can refuse it."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.batches: list[int] = []
        self.written = asyncio.Event()
        self.is_broken = False

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        if self.is_broken:
            raise StoreUnavailable
        self.batches.append(len(use_times_us))
        await super().record_key_uses(use_times_us)
        self.written.set()


@pytest.fixture
async def store() -> CountingStore:
    store = CountingStore(FakeClock())
    await add_key(store, APP_KEY, "zhang", "workbuddy")
    await add_key(store, OWN_KEY, "zhang", "")
    return store


async def last_used_time_us(store: CountingStore, key: str) -> int | None:
    grantee = await store.find_grantee(hash_key(key))
    assert grantee is not None
    return grantee.key.last_used_time_us


async def test_a_thousand_uses_of_a_key_are_written_once_with_the_last_time(store: CountingStore) -> None:
    uses = KeyUses(store, store.clock)
    for _ in range(1_000):
        store.clock.advance(1)
        uses.note("zhang-workbuddy")
    assert store.batches == []
    await uses.write()
    assert store.batches == [1]
    assert await last_used_time_us(store, APP_KEY) == store.clock.now_us()
    assert await last_used_time_us(store, OWN_KEY) is None
    await uses.write()
    assert store.batches == [1]


async def test_uses_are_written_by_themselves_in_time(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_uses, "WRITE_SECONDS", 0.01)
    uses = KeyUses(store, store.clock)
    running = asyncio.create_task(uses.run())
    uses.note("zhang-own")
    async with asyncio.timeout(10):
        await store.written.wait()
    running.cancel()
    await asyncio.wait([running])
    assert await last_used_time_us(store, OWN_KEY) == store.clock.now_us()


async def test_many_keys_are_written_in_small_transactions(store: CountingStore) -> None:
    uses = KeyUses(store, store.clock)
    for number in range(key_uses.KEYS_WRITTEN_AT_ONCE + 1):
        uses.note(f"key-{number}")
    await uses.write()
    assert store.batches == [key_uses.KEYS_WRITTEN_AT_ONCE, 1]


async def test_what_is_noted_is_bounded(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_uses, "KEYS_NOTED_MAX", 2)
    uses = KeyUses(store, store.clock)
    for key_id in ("a", "b", "c", "a"):
        uses.note(key_id)
    await uses.write()
    assert store.batches == [2]


async def test_a_store_that_fails_is_logged_and_uses_go_on(
    store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    uses = KeyUses(store, store.clock)
    store.is_broken = True
    uses.note("zhang-own")
    await uses.write()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    store.is_broken = False
    uses.note("zhang-own")
    await uses.write()
    assert await last_used_time_us(store, OWN_KEY) == store.clock.now_us()

"""SQLite answers any sequence of operations as the pure ledger in memory does, restarts included; L2 and L3 hold."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, MemoryLedgerStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import (
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_reserve,
    a_settle,
    differences,
    open_wallet,
)

from metergate.core.errors import MetergateError
from metergate.core.operations import Settled
from metergate.core.rows import Charge
from metergate.ports import ChargeFilter, LedgerStore, TransferFilter
from metergate.stores.sqlite import SqliteLedgerStore

AMOUNTS = st.integers(min_value=0, max_value=400)
RESERVATIONS = st.sampled_from(["res-1", "res-2", "res-3"])
STEPS = st.one_of(
    st.tuples(st.just("grant"), st.sampled_from(["g1", "g2", "g3"]), AMOUNTS, st.sampled_from([None, 1, 2])),
    st.tuples(st.just("reserve"), RESERVATIONS, st.sampled_from(["r1", "r2"]), AMOUNTS),
    st.tuples(st.just("capture"), RESERVATIONS, AMOUNTS, AMOUNTS),
    st.tuples(st.just("settle"), RESERVATIONS, st.none() | AMOUNTS, AMOUNTS),
    st.tuples(st.just("clock"), st.sampled_from([-1, 1, 2])),
    st.tuples(st.just("restart")),
)


def _plain(outcome: Any) -> Any:
    """An outcome without what may differ: the ids of charges that recovery made."""
    if isinstance(outcome, Settled):
        return (_plain(outcome.charge), outcome.spendable_microcredits)
    if isinstance(outcome, Charge):
        return (outcome.reservation_id, outcome.charged_microcredits, outcome.usage_counted, outcome.close_cause)
    if isinstance(outcome, MetergateError):
        return (type(outcome), str(outcome).replace("gateway", ""))
    charge = getattr(outcome, "charge", None)
    return outcome if charge is None else (_plain(charge), outcome.spendable_microcredits)


class World:
    """One store and how it is asked."""

    def __init__(self, store: MemoryLedgerStore | SqliteLedgerStore, clock: FakeClock, path: Path) -> None:
        self.store = store
        self.clock = clock
        self.path = path

    async def step(self, step: tuple[Any, ...]) -> Any:
        now_us = self.clock.now_us()
        owner = self.store.owner
        try:
            match step:
                case ("grant", grant_id, amount, days):
                    expire = None if days is None else NOW_US + days * DAY_US
                    return await self.store.add_grant(a_grant(grant_id, amount, expire_time_us=expire))
                case ("reserve", name, request_id, wanted):
                    operation = a_reserve(
                        name,
                        request_id=request_id,
                        wanted_microcredits=wanted,
                        limit_microcredits=300,
                        owner=owner,
                        now_us=now_us,
                    )
                    return await self.store.reserve(operation)
                case ("capture", name, target, wanted):
                    capture = a_capture(target, name, wanted_microcredits=wanted, owner=owner, now_us=now_us)
                    return await self.store.capture(capture)
                case ("settle", name, charged, captured):
                    settle = a_settle(charged, name, captured=captured, owner=owner, now_us=now_us)
                    return await self.store.settle(settle)
                case ("clock", days):
                    self.clock.advance(days * DAY_US)
                case ("restart",):
                    await self.restart()
        except MetergateError as refusal:
            return refusal
        return None

    async def restart(self) -> None:
        if isinstance(self.store, MemoryLedgerStore):
            self.store.restart()
            return
        await self.store.close()
        self.store = await SqliteLedgerStore.open(self.path, clock=self.clock, owner_id="gateway-1", create=False)


async def _books(store: LedgerStore, now_us: int) -> Any:
    charges = await store.list_charges("alice", ChargeFilter(), cursor=None, size=999)
    transfers = await store.list_transfers("alice", TransferFilter(), cursor=None, size=999)
    return (
        await store.balance("alice", "auth-1", now_us),
        [_plain(charge) for charge in charges.rows],
        [(row.sequence, row.kind, row.grant_id, row.amount_microcredits) for row in transfers.rows],
        (await store.list_grants("alice", cursor=None, size=999)).rows,
    )


@pytest.mark.timeout(120)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=25), cap=st.sampled_from([None, 350]))
def test_sqlite_and_memory_give_the_same_outcomes(steps: list[tuple[Any, ...]], cap: int | None) -> None:
    async def compare(folder: Path) -> None:
        path = folder / "ledger.db"
        clocks = FakeClock(NOW_US), FakeClock(NOW_US)
        sqlite = await SqliteLedgerStore.open(path, clock=clocks[1], owner_id="gateway-1", create=True)
        memory = World(MemoryLedgerStore(clock=clocks[0]), clocks[0], path)
        stored = World(sqlite, clocks[1], path)
        try:
            for world in (memory, stored):
                await open_wallet(world.store, a_grant("g0", 250), cap_microcredits=cap)
                await world.store.add_authorization(a_consent("auth-2"))
            for step in steps:
                assert _plain(await stored.step(step)) == _plain(await memory.step(step)), step
                books = await _books(stored.store, clocks[1].now_us())
                assert books == await _books(memory.store, clocks[0].now_us()), step
            assert await differences(memory.store) == []
            assert await differences(stored.store) == []
        finally:
            await stored.store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder)))

"""SQLite answers any sequence of operations as the pure ledger in memory does, restarts included; L2 and L3 hold."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from durability.workplace import fast_folder
from fakes import FakeClock, MemoryLedgerStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import (
    DAY_SECONDS,
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_refund,
    a_reserve,
    a_reversal,
    a_settle,
    a_state_change,
    an_adjustment,
    differences,
    open_wallet,
    tokens,
)

from metergate.core.errors import MetergateError
from metergate.core.operations import Settled
from metergate.core.reservation import Estimate
from metergate.core.rows import Charge, Correction, WalletState
from metergate.ports import ChargeFilter, LedgerStore, TransferFilter
from metergate.stores.sqlite import SqliteLedgerStore

AMOUNTS = st.integers(min_value=0, max_value=400)
RESERVATIONS = st.sampled_from(["res-1", "res-2", "res-3"])
ALL = 1_000  # more reservations than any run has
CORRECTIONS = st.sampled_from([f"c{number}" for number in range(9)])  # few: asked again, and with other content
OPERATIONS = st.one_of(
    st.tuples(
        st.just("grant"),
        st.sampled_from(["g1", "g2", "g3"]),
        AMOUNTS,
        st.sampled_from([None, 1, 2]),
        st.sampled_from([0, 0, 60, 200]),
    ),
    st.tuples(st.just("reserve"), RESERVATIONS, st.sampled_from(["r1", "r2"]), AMOUNTS),
    st.tuples(st.just("capture"), RESERVATIONS, AMOUNTS, AMOUNTS, st.none() | st.integers(0, 150)),
    st.tuples(st.just("settle"), RESERVATIONS, st.none() | AMOUNTS, AMOUNTS),
    st.tuples(st.just("refund"), CORRECTIONS, st.integers(0, 2), st.integers(-1, 120)),
    st.tuples(st.just("adjust"), CORRECTIONS, st.integers(-200, 200), st.none() | st.integers(0, 1)),
    st.tuples(st.just("reverse"), CORRECTIONS, st.sampled_from(["g1", "g2", "g3", "rollover:g1"])),
    st.tuples(
        st.just("state"), CORRECTIONS, st.sampled_from([WalletState.ACTIVE, WalletState.ACTIVE, WalletState.SUSPENDED])
    ),
)
STEPS = st.one_of(
    OPERATIONS,
    OPERATIONS,
    st.tuples(st.just("request"), st.integers(10, 150), st.integers(0, 150)),
    st.tuples(st.just("request"), st.integers(10, 150), st.integers(0, 150)),
    st.tuples(st.just("cancel"), OPERATIONS),
    st.tuples(st.just("recover"), RESERVATIONS),
    st.tuples(st.just("prune"), st.sampled_from([0, 1])),
    st.tuples(st.just("sweep"), st.integers(1, 2)),
    st.tuples(st.just("clock"), st.sampled_from([-1, 1, 1, 2])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("again")),
)


def _plain(outcome: Any) -> Any:
    """An outcome without what may differ: the ids of charges that recovery made."""
    if isinstance(outcome, Settled):
        return (_plain(outcome.charge), outcome.spendable_microcredits)
    if isinstance(outcome, Charge):
        return (outcome.reservation_id, outcome.charged_microcredits, outcome.usage_counted, outcome.close_cause)
    if isinstance(outcome, MetergateError):
        return (type(outcome), str(outcome).replace("gateway", ""))
    if isinstance(outcome, Correction) and not outcome.charge_id.startswith("charge-of"):
        return replace(outcome, charge_id="")
    charge = getattr(outcome, "charge", None)
    return outcome if charge is None else (_plain(charge), outcome.spendable_microcredits)


class World:
    """One store and how it is asked."""

    def __init__(self, store: MemoryLedgerStore | SqliteLedgerStore, clock: FakeClock, path: Path) -> None:
        self.store = store
        self.clock = clock
        self.path = path
        self._last: tuple[Any, ...] = ("clock", 0)
        self._requests = 0
        self._lives = 0  # of reservations' names: an id is not used again after its reservation was pruned

    async def step(self, step: tuple[Any, ...]) -> Any:
        self._last = self._last if step == ("again",) else step
        try:
            return await self._ask(self._last)
        except MetergateError as refusal:
            return refusal

    async def _ask(self, step: tuple[Any, ...]) -> Any:
        match step:
            case ("clock", days):
                self.clock.advance(days * DAY_US)
            case ("restart",):
                await self.restart()
            case ("cancel", operation):
                await self._give_up(operation)
            case ("recover", name):  # of what nobody runs but this one
                running = self._named(name)
                return await self.store.recover_abandoned(lambda reservation_id: reservation_id == running)
            case ("prune", days):
                self._lives += 1
                return await self.store.prune_reservations(self.clock.now_us() - days * DAY_US, count_max=ALL)
            case ("sweep", limit):
                return await self.store.expire_grants(self.clock.now_us(), limit)
            case ("refund", name, int() as position, amount):
                return await self._ask(("refund", name, await self._charge_id(position), amount))
            case ("refund" | "adjust" | "reverse" | "state", *_):
                return await self._correct(step, {"now_us": self.clock.now_us()})
            case _:
                return await self._spend(step, {"now_us": self.clock.now_us()})
        return None

    async def _give_up(self, operation: tuple[Any, ...]) -> None:
        """Ask, and go away before the answer: it is carried out all the same."""
        if operation[0] == "refund":  # what it is of is read before
            _, name, position, amount = operation
            operation = ("refund", name, await self._charge_id(position), amount)
        asking = asyncio.create_task(self._ask(operation))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.exception()  # a refusal that came at once
        await self.store.check()  # comes after it

    async def _spend(self, step: tuple[Any, ...], now: dict[str, int]) -> Any:
        owned: dict[str, Any] = {"owner": self.store.owner} | now
        match step:
            case ("grant", grant_id, amount, days, rollover):
                rule = {"rollover_microcredits_max": rollover, "rollover_seconds": DAY_SECONDS if rollover else 0}
                values: dict[str, Any] = rule | {"create_time_us": now["now_us"]}
                expire = None if days is None else NOW_US + days * DAY_US
                return await self.store.add_grant(a_grant(grant_id, amount, expire_time_us=expire, **values))
            case ("reserve", name, request_id, wanted):
                amounts = {"wanted_microcredits": wanted, "limit_microcredits": 300}
                return await self.store.reserve(a_reserve(self._named(name), request_id=request_id, **amounts, **owned))
            case ("request", wanted, charged):
                self._requests += 1
                name = f"whole-{self._requests}"
                await self.store.reserve(a_reserve(name, wanted_microcredits=wanted, **owned))
                charged = min(charged, wanted)
                return await self.store.settle(a_settle(charged, name, captured=charged, **owned))
            case ("capture", name, target, wanted, estimated):
                estimate = None if estimated is None else Estimate(usage=tokens(estimated), microcredits=estimated)
                values = {"wanted_microcredits": wanted, "estimate": estimate}
                return await self.store.capture(a_capture(target, self._named(name), **values, **owned))
            case ("settle", name, charged, captured):
                return await self.store.settle(a_settle(charged, self._named(name), captured=captured, **owned))
        raise AssertionError(step)

    async def _correct(self, step: tuple[Any, ...], now: dict[str, int]) -> Any:
        match step:
            case ("refund", name, charge_id, amount):
                return await self.store.refund(a_refund(amount, charge_id, name, **now))
            case ("adjust", name, amount, days):
                seconds = None if days is None else days * DAY_SECONDS
                return await self.store.adjust(an_adjustment(amount, name, grant_seconds=seconds, **now))
            case ("reverse", name, grant_id):
                return await self.store.reverse(a_reversal(grant_id, name, **now))
            case ("state", name, state):
                return await self.store.set_wallet_state(a_state_change(name, state, **now))
        raise AssertionError(step)

    def _named(self, name: str) -> str:
        return f"{name}-{self._lives}"

    async def _charge_id(self, position: int) -> str:
        """Of the newest charges; recovery makes ids of its own."""
        charges = (await self.store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
        return charges[position].charge_id if position < len(charges) else "unknown"

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
        _in_order(charges.rows),
        [replace(row, charge_id="") for row in transfers.rows],
        [_plain(correction) for correction in (await store.list_corrections("alice", cursor=None, size=999)).rows],
        (await store.list_grants("alice", cursor=None, size=999)).rows,
    )


def _in_order(charges: Sequence[Charge]) -> list[Any]:
    """As they are listed; but recovery settles several at one instant, and makes their ids up: these have no order."""
    return [
        (time_us, sorted(map(_plain, of_an_instant), key=str))
        for time_us, of_an_instant in groupby(charges, key=lambda charge: charge.settle_time_us)
    ]


@pytest.mark.timeout(120)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=15, max_size=40), cap=st.sampled_from([None, 350]))
def test_sqlite_and_memory_give_the_same_outcomes(steps: list[tuple[Any, ...]], cap: int | None) -> None:
    async def compare(folder: Path) -> None:
        path = folder / "ledger.db"
        clocks = FakeClock(NOW_US), FakeClock(NOW_US)
        sqlite = await SqliteLedgerStore.open(path, clock=clocks[1], owner_id="gateway-1", create=True)
        memory = World(MemoryLedgerStore(clock=clocks[0]), clocks[0], path)
        stored = World(sqlite, clocks[1], path)
        try:
            for world in (memory, stored):
                june = a_grant(
                    "g1",
                    250,
                    expire_time_us=NOW_US + DAY_US,
                    rollover_microcredits_max=60,
                    rollover_seconds=DAY_SECONDS,
                )
                await open_wallet(world.store, a_grant("g0", 100), june, cap_microcredits=cap)
                await world.store.add_authorization(a_consent("auth-2"))
            for step in steps:
                assert _plain(await stored.step(step)) == _plain(await memory.step(step)), step
                books = await _books(stored.store, clocks[1].now_us())
                assert books == await _books(memory.store, clocks[0].now_us()), step
            assert await differences(memory.store) == []
            assert await differences(stored.store) == []
        finally:
            await stored.store.close()

    with fast_folder() as folder:
        asyncio.run(compare(folder))

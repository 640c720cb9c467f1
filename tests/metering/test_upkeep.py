"""What a settlement left open does not stay open, and nothing that runs is touched."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from metering_world import STOP, World, content

from metergate.core.accounts import DAY_US
from metergate.core.errors import LedgerInvariantBroken, MetergateError, StoreUnavailable
from metergate.core.operations import Settle, Settled
from metergate.core.reservation import CloseCause
from metergate.metering.upkeep import Upkeep
from metergate.ports import Recovery

FUNDS = 10_000


class Heard:
    """What the upkeep told."""

    def __init__(self, world: World, *, retention_days: int = 7) -> None:
        self.recoveries: list[Recovery] = []
        self.pruned: list[int] = []
        self.upkeep = Upkeep(
            world.ledger,
            world.clock,
            world.metering.is_running,
            retention_days=retention_days,
            swept=self.recoveries.append,
            pruned=self.pruned.append,
        )


async def refuse(_operation: Settle) -> Settled:
    raise LedgerInvariantBroken(problem="a test")


async def fail(_operation: Settle) -> Settled:
    raise ZeroDivisionError


@pytest.mark.parametrize("settle", [refuse, fail])
async def test_a_reservation_that_settling_left_open_is_settled_at_what_was_captured(
    monkeypatch: pytest.MonkeyPatch, settle: Callable[[Settle], Awaitable[Settled]]
) -> None:
    world = await World([*content("one two", " three"), STOP]).fund(FUNDS)
    with monkeypatch.context() as patched:
        patched.setattr(world.ledger, "settle", settle)
        with pytest.raises((MetergateError, ZeroDivisionError)):
            await world.stream()
        await world.settled()
    (left,) = world.ledger.open_reservations()
    heard = Heard(world)
    await heard.upkeep.look()
    assert heard.recoveries == [Recovery(settled=1, stuck=0)]
    (charge,) = await world.charges()
    assert (charge.close_cause, charge.charged_microcredits) == (CloseCause.CRASH, left.captured_microcredits)
    assert await world.available() == FUNDS - charge.charged_microcredits


async def test_nothing_is_settled_under_a_request_at_whatever_step_it_is() -> None:
    world = await World([*content("one two", " three", " four"), STOP]).fund(FUNDS)
    heard = Heard(world)
    running = asyncio.create_task(world.stream())
    while not running.done():
        await heard.upkeep.look()
        await asyncio.sleep(0)
    await running
    await world.settled()
    assert {recovery.settled for recovery in heard.recoveries} == {0}
    (charge,) = await world.charges()
    assert charge.close_cause is CloseCause.FINISHED
    assert not world.metering.is_running(charge.reservation_id)


async def test_nothing_is_settled_under_the_release_of_a_request_whose_app_went_away() -> None:
    world = await World([STOP]).fund(FUNDS)
    heard = Heard(world)
    for steps in range(1, 9):
        call = asyncio.create_task(world.stream())
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        while not call.done() or world.ledger.open_reservations():
            await heard.upkeep.look()
            await asyncio.sleep(0)
        await world.settled()
    assert {recovery.settled for recovery in heard.recoveries} == {0}
    assert await world.available() + sum([row.charged_microcredits for row in await world.charges()]) == FUNDS


async def test_closed_reservations_are_pruned_in_batches_once_they_are_old_enough() -> None:
    world = await World([*content("one"), STOP]).fund(FUNDS)
    await world.stream()
    await world.settled()
    heard = Heard(world, retention_days=3)
    world.clock.advance(3 * DAY_US)
    await heard.upkeep.look()
    assert heard.pruned == [0]
    world.clock.advance(1)
    await heard.upkeep.look()
    assert heard.pruned == [0, 1]
    assert not world.ledger.books.reservations.rows
    assert len(await world.charges()) == 1


async def test_a_store_that_fails_does_not_end_the_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World([STOP]).fund(FUNDS)
    heard = Heard(world)

    async def unavailable(_is_running: object) -> Recovery:
        raise StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(world.ledger, "recover_abandoned", unavailable)
        await heard.upkeep.look()
    await heard.upkeep.look()
    assert heard.recoveries == [Recovery(settled=0, stuck=0)]

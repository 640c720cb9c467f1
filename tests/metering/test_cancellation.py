"""The use case, cancelled at every await and with every acknowledgement lost."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest
from metering_world import CARD, STOP, World, content, request, usage

from metergate.core.errors import MetergateError, StoreUnavailable
from metergate.core.rating import rate_ceil
from metergate.core.reservation import CloseCause

PIECES = ("The str", "aigh", "t road is long", " and", " winding")
FUNDS = 10_000


class Watched(Awaitable[None]):
    """Runs a coroutine and calls ``suspended`` each time that it waits."""

    def __init__(self, work: Coroutine[Any, Any, None], suspended: Callable[[], None]) -> None:
        self._work = work
        self._suspended = suspended

    def __await__(self) -> Generator[Any, Any, None]:
        error: BaseException | None = None
        while True:
            try:
                waited_for = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration:
                return
            self._suspended()
            try:
                yield waited_for
                error = None
            except BaseException as exc:  # noqa: BLE001 - it is thrown into the coroutine
                error = exc


async def run_watched(work: Coroutine[Any, Any, None], suspended: Callable[[], None]) -> None:
    await Watched(work, suspended)


async def cancelled_at(world: World, work: Coroutine[Any, Any, None], step: int) -> bool:
    """Run ``work`` and cancel it when it waits for the ``step``-th time; whether it got that far."""
    waits = 0

    def suspended() -> None:
        nonlocal waits
        waits += 1
        if waits == step:
            asyncio.get_running_loop().call_soon(task.cancel)

    task = asyncio.create_task(run_watched(work, suspended))
    with suppress(asyncio.CancelledError, MetergateError):
        await task
    await world.settled()
    return waits >= step


async def check_books(world: World) -> None:
    """Nothing is open, every microcredit is accounted for, and the charge is for what was delivered."""
    assert world.ledger.open_reservations() == []
    charges = await world.charges()
    assert await world.available() == FUNDS - sum(charge.charged_microcredits for charge in charges)
    assert world.backend.open_generations == 0
    if world.sink.deltas:
        delivered = usage(world.sink.admissions[0].prompt_tokens, world.sink.text())
        assert [charge.usage_counted for charge in charges] == [delivered]
        assert charges[0].charged_microcredits == rate_ceil(delivered, CARD)


async def test_cancelled_at_any_await_a_stream_is_settled_at_what_was_delivered() -> None:
    for step in range(1, 200):
        world = await World([*content(*PIECES), STOP]).fund(FUNDS)
        reached = await cancelled_at(world, world.stream(), step)
        await check_books(world)
        for charge in await world.charges():
            assert charge.close_cause in (CloseCause.CLIENT_CANCELLED, CloseCause.FINISHED)
        if not reached:
            assert step > 10
            return
    pytest.fail("the stream never ended")


async def test_cancelled_at_any_await_while_credit_runs_out_a_stream_is_settled_at_what_was_delivered() -> None:
    for step in range(1, 200):
        world = await World([*content(*PIECES), STOP]).fund(FUNDS)
        asked = request(credit_limit_microcredits=60)
        reached = await cancelled_at(
            world, world.metering.stream(world.caller, asked, world.sink, time_left_seconds=None), step
        )
        await check_books(world)
        if not reached:
            return
    pytest.fail("the stream never ended")


async def test_cancelled_at_any_await_a_whole_answer_is_charged_its_prompt_or_all_of_it() -> None:
    async def complete(world: World) -> None:
        await world.metering.complete(world.caller, request(), time_left_seconds=None)

    answer_charges: set[int] = set()
    for step in range(1, 200):
        world = await World([*content(*PIECES), STOP]).fund(FUNDS)
        reached = await cancelled_at(world, complete(world), step)
        await check_books(world)
        answer_charges.update(charge.charged_microcredits for charge in await world.charges())
        if not reached:
            prompt = rate_ceil(usage(7, ""), CARD)
            assert answer_charges == {prompt, rate_ceil(usage(7, "".join(PIECES)), CARD)}
            return
    pytest.fail("the request never ended")


@pytest.mark.parametrize("after_commit", [False, True])
async def test_when_any_operation_of_the_ledger_fails_nothing_undebited_is_delivered_and_recovery_settles_the_rest(
    after_commit: bool,
) -> None:
    for operation in range(1, 50):
        world = await World([*content(*PIECES), STOP]).fund(FUNDS)
        world.ledger.fail_next(1, skip=operation - 1, after_commit=after_commit)
        [result] = await asyncio.gather(world.stream(), return_exceptions=True)
        await world.settled()
        if result is None:
            await check_books(world)
            assert operation > 3
            return
        assert isinstance(result, StoreUnavailable)
        world.ledger.restart()
        assert world.ledger.open_reservations() == []
        charged = sum(charge.charged_microcredits for charge in await world.charges())
        assert await world.available() == FUNDS - charged
        if world.sink.deltas:
            delivered = usage(world.sink.admissions[0].prompt_tokens, world.sink.text())
            assert charged >= rate_ceil(delivered, CARD)
    pytest.fail("the stream never succeeded")


async def test_when_the_store_was_opened_again_the_stream_ends_and_recovery_has_settled_it() -> None:
    gate = asyncio.Event()
    world = await World([*content("The str"), gate, *content("aight"), STOP]).fund(FUNDS)
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    world.ledger.restart()
    gate.set()
    with pytest.raises(MetergateError) as raised:
        await running
    assert raised.value.reason == "STORE_UNAVAILABLE"
    assert world.sink.text() == "The str"
    await world.settled()
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.CRASH
    assert world.ledger.open_reservations() == []


async def test_a_whole_answer_that_recovery_settled_first_is_not_given_for_the_prompt_it_charged() -> None:
    gate = asyncio.Event()
    world = await World([*content("The straight"), gate, STOP]).fund(FUNDS)
    running = asyncio.create_task(world.metering.complete(world.caller, request(), time_left_seconds=None))
    async with asyncio.timeout(5):
        await world.backend.played.wait()
    world.ledger.restart()
    gate.set()
    with pytest.raises(StoreUnavailable):
        await running
    [charge] = await world.charges()
    assert (charge.close_cause, charge.charged_microcredits) == (CloseCause.CRASH, rate_ceil(usage(7, ""), CARD))
    again = await world.metering.complete(world.caller, request(), time_left_seconds=None)
    assert again.receipt.replayed
    assert again.message is None

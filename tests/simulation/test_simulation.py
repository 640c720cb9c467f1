"""The laws under everything that can go wrong at once, many times over, and each time the same for the same seed."""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from metergate.core.reservation import CloseCause
from metergate.metering.streamed_run import StreamedRun
from simulation.simulated import Simulation
from simulation.virtual_loop import NothingLeftToHappen, VirtualLoop

# A seed takes some 10 ms. ``make soak`` sets more.
SEEDS = int(os.environ.get("METERGATE_SEEDS", "300"))
FIRST_SEED = int(os.environ.get("METERGATE_FIRST_SEED", "0"))

# A run that goes on after this many virtual seconds never ends.
VIRTUAL_SECONDS_MAX = 3_600.0


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Stores fail and clients vanish thousands of times here; each would be a line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def simulate(seed: int) -> Simulation:
    """Run a seed on a loop of its own."""
    loop = VirtualLoop(seconds_max=VIRTUAL_SECONDS_MAX)
    try:
        simulation = Simulation(seed)
        loop.run_until_complete(simulation.run())
        return simulation
    except BaseException as exc:
        exc.add_note(f"seed {seed}: METERGATE_FIRST_SEED={seed} METERGATE_SEEDS=1 replays it")
        raise
    finally:
        for task in asyncio.all_tasks(loop):  # of a run that broke
            task.cancel()
        with suppress(NothingLeftToHappen, BaseException):
            loop.run_until_complete(asyncio.sleep(60))
        loop.close()


def test_whatever_goes_wrong_the_laws_hold() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        simulate(seed)


def test_a_seed_happens_the_same_way_each_time() -> None:
    for seed in range(20):
        assert simulate(seed).luck.trace == simulate(seed).luck.trace
    assert simulate(1).luck.trace != simulate(2).luck.trace


# STORE_ERROR and STREAM_TOO_OLD end in recovery or need a slower world; nobody here sets a deadline or a policy.
NOT_SIMULATED = {
    CloseCause.STORE_ERROR,
    CloseCause.STREAM_TOO_OLD,
    CloseCause.DEADLINE_EXCEEDED,
    CloseCause.CONTENT_BLOCKED,
    CloseCause.CONTENT_POLICY_ERROR,
}


def test_the_simulation_comes_to_every_other_end_that_a_request_can_have() -> None:
    missing = set(CloseCause) - NOT_SIMULATED
    for seed in range(1_200):
        missing -= simulate(seed).causes
        if not missing:
            return
    pytest.fail(f"no seed came to {missing}")


def test_a_gateway_that_delivers_before_it_debits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deliver_on_credit(*_: object) -> None:
        return None

    monkeypatch.setattr(StreamedRun, "_debit", deliver_on_credit)
    with pytest.raises(AssertionError, match="microcredits of"):
        simulate(0)


def test_a_deadlock_is_an_error_and_not_an_endless_test() -> None:
    loop = VirtualLoop(seconds_max=1.0)
    try:
        with pytest.raises(NothingLeftToHappen):
            loop.run_until_complete(loop.create_future())
    finally:
        loop.close()

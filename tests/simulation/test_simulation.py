"""The laws under everything that can go wrong at once, many times over, and each time the same for the same seed."""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from metergate.core import correcting
from metergate.core.books import Books
from metergate.core.errors import RequestInvalid
from metergate.core.grants import give_back
from metergate.core.reservation import Allocation, CloseCause
from metergate.core.rows import Charge, Correction, WalletState
from metergate.metering import embedding
from metergate.metering.streamed_run import StreamedRun
from metergate.metering.vetting import Vetting
from simulation.correcting import REFUSALS
from simulation.luck import Broken
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


def simulate_many(first_seed: int, seeds: int) -> None:
    for seed in range(first_seed, first_seed + seeds):
        simulate(seed)


def test_whatever_goes_wrong_the_laws_hold() -> None:
    simulate_many(FIRST_SEED, SEEDS)


def test_a_seed_happens_the_same_way_each_time() -> None:
    for seed in range(20):
        assert simulate(seed).luck.trace == simulate(seed).luck.trace
    assert simulate(1).luck.trace != simulate(2).luck.trace


# STORE_ERROR ends in recovery; STREAM_TOO_OLD needs a slower world.
NOT_SIMULATED = {CloseCause.STORE_ERROR, CloseCause.STREAM_TOO_OLD}


def test_the_simulation_comes_to_every_other_end_that_a_request_can_have() -> None:
    missing = set(CloseCause) - NOT_SIMULATED
    for seed in range(1_200):
        missing -= simulate(seed).causes
        if not missing:
            return
    pytest.fail(f"no seed came to {missing}")


def test_the_operator_of_the_simulation_meets_every_answer_that_a_correction_can_have() -> None:
    missing = {"done", "IdConflict", *(refusal.__name__ for refusal in REFUSALS)}
    for seed in range(1_200):
        missing -= simulate(seed).operator.met
        if not missing:
            return
    pytest.fail(f"no seed came to {missing}")


async def _deliver_on_credit(*_: object) -> None:
    return None


async def _allow_unasked(*_: object) -> None:
    return None


def _answer_whatever_was_asked(books: Books, correction: Correction) -> Correction | None:
    return books.corrections.get((correction.subscriber_id, correction.correction_id))


def _let_go_on(books: Books, subscriber_id: str, _: WalletState) -> None:
    wallet = books.wallets.rows[subscriber_id]
    books.wallets.change(subscriber_id, replace(wallet, state=WalletState.ACTIVE))


def _refund_again(_: Books, charge: Charge, amount_microcredits: int) -> tuple[Allocation, ...]:
    if amount_microcredits > charge.charged_microcredits:
        raise RequestInvalid
    return give_back(charge.allocations, amount_microcredits)[1]


def _count_nearly_nothing(*_: object) -> int:
    return 1


DEFECTS: dict[str, tuple[Any, str, Any, str]] = {
    "it delivers before it debits": (StreamedRun, "_debit", _deliver_on_credit, "microcredits of"),
    "it delivers what nobody allowed": (Vetting, "end_before", _allow_unasked, "allowed is ''"),
    "it takes an id for two things": (correcting, "_first", _answer_whatever_was_asked, "was answered with"),
    "it lets a suspended wallet go on": (correcting, "_set_state", _let_go_on, "of a suspended wallet|add up"),
    "it forgets what was refunded before": (correcting, "_refundable", _refund_again, "add up"),
    "it gives vectors for nearly nothing": (
        embedding,
        "_count",
        _count_nearly_nothing,
        "vectors cost 28|got vectors for 3",
    ),
}


@pytest.mark.parametrize(("where", "name", "defect", "caught"), DEFECTS.values(), ids=DEFECTS)
def test_a_gateway_with_a_defect_is_caught(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, defect: Any, caught: str
) -> None:
    monkeypatch.setattr(where, name, defect)
    with pytest.raises(Broken, match=caught):
        simulate_many(0, 300)


def test_a_deadlock_is_an_error_and_not_an_endless_test() -> None:
    loop = VirtualLoop(seconds_max=1.0)
    try:
        with pytest.raises(NothingLeftToHappen):
            loop.run_until_complete(loop.create_future())
    finally:
        loop.close()

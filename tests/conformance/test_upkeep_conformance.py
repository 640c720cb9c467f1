"""What every LedgerStore promises of reservations that nobody runs any more, and of old ones."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_capture, a_grant, a_reserve, a_settle, available, differences, open_wallet, reserve

from metergate.core.errors import RequestIdConflict
from metergate.core.operations import CaptureStatus, Replayed
from metergate.core.reservation import CloseCause
from metergate.ports import ChargeFilter, LedgerStore, Recovery
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.stores.sqlite import store as sqlite_store
from metergate.stores.sqlite.upkeep import OpenReservation, open_reservations


@pytest.fixture
async def store(store: LedgerStore) -> LedgerStore:
    await open_wallet(store, a_grant(amount=1_000))
    return store


def nobody(_reservation_id: str) -> bool:
    """No request runs."""
    return False


# --- abandoned ------------------------------------------------------------------------------------------------------


async def test_what_nobody_runs_is_settled_at_what_was_captured(store: LedgerStore) -> None:
    await reserve(store)
    await store.capture(a_capture(40, owner=store.owner, delivered_microcredits=9))
    assert await store.recover_abandoned(nobody) == Recovery(settled=1, stuck=0)
    (charge,) = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    assert (charge.charged_microcredits, charge.close_cause) == (40, CloseCause.CRASH)
    assert await available(store) == 960


async def test_a_crash_keeps_what_was_delivered_so_that_the_rest_can_be_claimed_back(store: LedgerStore) -> None:
    await reserve(store)
    await store.capture(a_capture(40, owner=store.owner, delivered_microcredits=9))
    await store.recover_abandoned(nobody)
    await store.prune_reservations(NOW_US + 1, count_max=9)
    (charge,) = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    assert (charge.charged_microcredits, charge.delivered_microcredits) == (40, 9)


async def test_what_ended_in_good_order_was_delivered_as_charged(store: LedgerStore) -> None:
    await reserve(store)
    settled = await store.settle(a_settle(30, owner=store.owner, captured=40))
    assert settled.charge is not None
    assert settled.charge.delivered_microcredits == 30


async def test_what_captured_nothing_is_released(store: LedgerStore) -> None:
    await reserve(store, capture_microcredits=0, capture_usage=a_capture(0).target_usage)
    assert await store.recover_abandoned(nobody) == Recovery(settled=1, stuck=0)
    assert await available(store) == 1_000


async def test_what_somebody_runs_is_left_alone(store: LedgerStore) -> None:
    await reserve(store, "mine")
    await reserve(store, "nobodys", request_id="other")
    assert await store.recover_abandoned(lambda reservation_id: reservation_id == "mine") == Recovery(
        settled=1, stuck=0
    )
    captured = await store.capture(a_capture(50, "mine", owner=store.owner))
    assert captured.status is CaptureStatus.OPEN
    await store.settle(a_settle(50, "mine", owner=store.owner))


async def test_looking_again_changes_nothing(store: LedgerStore) -> None:
    await reserve(store)
    await store.recover_abandoned(nobody)
    assert await store.recover_abandoned(nobody) == Recovery(settled=0, stuck=0)


async def test_a_request_that_ends_while_the_sweep_looks_was_not_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, loop = tmp_path / "ledger.db", asyncio.get_running_loop()
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant(amount=1_000))
    await reserve(store)
    running = {"res-1"}

    async def end() -> None:
        await store.settle(a_settle(9, owner=store.owner))
        running.clear()

    def ends_meanwhile(connection: sqlite3.Connection) -> list[OpenReservation]:
        rows = list(open_reservations(connection))
        asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=30)
        return rows

    monkeypatch.setattr(sqlite_store, "open_reservations", ends_meanwhile)
    assert await store.recover_abandoned(running.__contains__) == Recovery(settled=0, stuck=0)
    assert caplog.text == ""
    await store.close()


# --- pruning --------------------------------------------------------------------------------------------------------


async def test_old_closed_reservations_go_and_open_and_younger_ones_stay(store: LedgerStore) -> None:
    for name in ("charged", "released", "young", "open"):
        await reserve(store, name, request_id=name)
    await store.settle(a_settle(30, "charged", owner=store.owner, captured=40))
    await store.settle(a_settle(None, "released", owner=store.owner))
    await store.settle(a_settle(30, "young", owner=store.owner, captured=40, now_us=NOW_US + 5))
    assert await store.prune_reservations(NOW_US + 5, count_max=9) == 2
    assert await store.prune_reservations(NOW_US + 5, count_max=9) == 0
    assert await differences(store) == []
    await store.settle(a_settle(9, "open", owner=store.owner))


async def test_no_more_is_pruned_at_once_than_was_asked_for(store: LedgerStore) -> None:
    for name in ("one", "two", "three"):
        await reserve(store, name, request_id=name)
        await store.settle(a_settle(9, name, owner=store.owner))
    assert [await store.prune_reservations(NOW_US + 1, count_max=2) for _ in range(3)] == [2, 1, 0]


async def test_a_pruned_request_is_still_answered_from_its_charge(store: LedgerStore) -> None:
    await reserve(store, request_id="r")
    settled = await store.settle(a_settle(9, owner=store.owner))
    await store.prune_reservations(NOW_US + 1, count_max=9)
    again = await store.reserve(a_reserve("res-2", request_id="r", owner=store.owner))
    assert isinstance(again, Replayed)
    assert again.charge == settled.charge
    with pytest.raises(RequestIdConflict):
        await store.reserve(a_reserve("res-3", request_id="r", content_hash=b"other", owner=store.owner))


async def test_a_pruned_request_that_was_charged_nothing_may_run_again(store: LedgerStore) -> None:
    await reserve(store, request_id="r")
    await store.settle(a_settle(None, owner=store.owner))
    await store.prune_reservations(NOW_US + 1, count_max=9)
    await reserve(store, "res-2", request_id="r")
    await store.settle(a_settle(9, "res-2", owner=store.owner))
    assert await available(store) == 991

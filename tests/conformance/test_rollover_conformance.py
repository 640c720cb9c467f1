"""What is left of a grant that expires: what its rule lets roll over, when, and that it never mints."""

from typing import Any

import pytest
from ledger_rows import DAY_SECONDS, DAY_US, NOW_US, a_grant, a_settle, a_wallet, available, open_wallet, reserve

from metergate.core.errors import InsufficientCredit, RequestInvalid
from metergate.core.operations import AddGrant
from metergate.core.rows import Grant, GrantSource, TransferKind
from metergate.ports import LedgerStore, TransferFilter

LATER_US = NOW_US + DAY_US  # when the grant of ``a_plan_cycle`` is over
OVER_US = LATER_US + 2 * DAY_US  # when its rollover grant is too


def a_plan_cycle(amount: int = 500, most: int = 200, **values: Any) -> AddGrant:
    rule: dict[str, Any] = {"rollover_microcredits_max": most, "rollover_seconds": 2 * DAY_SECONDS}
    defaults: dict[str, Any] = {"source": GrantSource.PLAN_CYCLE, "expire_time_us": LATER_US, "priority": 3}
    return a_grant("june", amount, **(defaults | rule | values))


async def grants(store: LedgerStore) -> dict[str, Grant]:
    return {grant.grant_id: grant for grant in (await store.list_grants("alice", cursor=None, size=99)).rows}


async def moved(store: LedgerStore) -> list[tuple[TransferKind, str, str, int]]:
    """Oldest first, without what added grants."""
    rows = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows
    return [
        (row.kind, row.debit_account, row.credit_account, row.amount_microcredits)
        for row in reversed(rows)
        if row.kind is not TransferKind.GRANT
    ]


async def test_what_remains_rolls_over_as_far_as_the_rule_allows_and_the_rest_is_breakage(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle())
    assert await store.expire_grants(LATER_US, 10) == 1
    assert await moved(store) == [
        (TransferKind.ROLLOVER, "grant:june", "grant:rollover:june", 200),
        (TransferKind.EXPIRY, "grant:june", "breakage", 300),
    ]
    rollover = (await grants(store))["rollover:june"]
    assert (rollover.source, rollover.priority, rollover.amount_microcredits) == (GrantSource.ROLLOVER, 3, 200)
    assert (rollover.effective_time_us, rollover.expire_time_us) == (LATER_US, OVER_US)
    assert await available(store, LATER_US) == 200


async def test_less_than_the_rule_allows_rolls_over_whole(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle(amount=150))
    await store.expire_grants(LATER_US, 10)
    assert await moved(store) == [(TransferKind.ROLLOVER, "grant:june", "grant:rollover:june", 150)]


async def test_what_rolled_over_does_not_roll_over_again(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle())
    await store.expire_grants(LATER_US, 10)
    await store.expire_grants(OVER_US, 10)
    assert (await moved(store))[2:] == [(TransferKind.EXPIRY, "grant:rollover:june", "breakage", 200)]
    assert await available(store, OVER_US) == 0


async def test_a_wallet_that_slept_past_both_times_rolls_nothing_over(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle())
    assert await available(store, OVER_US) == 0
    await store.expire_grants(OVER_US, 10)
    assert await moved(store) == [(TransferKind.EXPIRY, "grant:june", "breakage", 500)]


async def test_credit_that_will_roll_over_can_be_spent_by_the_request_that_makes_it(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle(amount=150))
    assert await available(store, LATER_US) == 150, "nobody has moved it yet"
    with pytest.raises(InsufficientCredit):
        await reserve(store, "much", now_us=LATER_US, minimum_microcredits=151, wanted_microcredits=151)
    assert await moved(store) == [], "what is refused changes nothing"
    reservation = await reserve(store, now_us=LATER_US, wanted_microcredits=200)
    assert [(part.grant_id, part.amount_microcredits) for part in reservation.allocations] == [("rollover:june", 150)]


async def test_what_comes_back_after_the_expiry_rolls_over_as_far_as_the_rule_still_allows(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle(amount=400))
    for name in ("res-1", "res-2"):
        await reserve(store, name)
    await store.expire_grants(LATER_US, 10)  # 200 remain: all that may
    assert (await grants(store))["rollover:june"].amount_microcredits == 200
    await store.settle(a_settle(9, "res-1", owner=store.owner, now_us=LATER_US))
    assert (await moved(store))[-1] == (TransferKind.EXPIRY, "grant:june", "breakage", 91)


async def test_a_rollover_grant_grows_by_what_comes_back_and_also_after_it_was_spent(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle(amount=220))
    for name in ("res-1", "res-2"):
        await reserve(store, name)
    assert await store.expire_grants(LATER_US, 10) == 1
    await reserve(store, "all", now_us=LATER_US, wanted_microcredits=20)
    await store.settle(a_settle(20, "all", owner=store.owner, now_us=LATER_US, captured=20))
    for name, amount in (("res-1", 111), ("res-2", 200)):
        await store.settle(a_settle(9, name, owner=store.owner, now_us=LATER_US))
        assert (await grants(store))["rollover:june"].amount_microcredits == amount
    assert (await grants(store))["rollover:june"].remaining_microcredits == 180
    assert (await moved(store))[-1] == (TransferKind.EXPIRY, "grant:june", "breakage", 2)


async def test_what_comes_back_after_the_rollover_grant_is_over_is_breakage(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle(amount=100))
    await reserve(store)
    await store.settle(a_settle(None, owner=store.owner, now_us=OVER_US))
    assert await moved(store) == [(TransferKind.EXPIRY, "grant:june", "breakage", 100)]


async def test_a_grant_that_expires_while_it_is_reserved_is_honoured_until_the_reservation_closes(
    store: LedgerStore,
) -> None:
    await open_wallet(store, a_plan_cycle(amount=100))
    await reserve(store)
    settled = await store.settle(a_settle(100, owner=store.owner, now_us=OVER_US, captured=100))
    assert settled.charge is not None
    assert await moved(store) == [(TransferKind.CHARGE, "grant:june", "revenue", 100)]


async def test_the_sweep_takes_bounded_bites_and_deals_with_each_grant_once(store: LedgerStore) -> None:
    await open_wallet(store, *(a_grant(f"g{number}", 10, expire_time_us=LATER_US) for number in range(5)))
    await store.add_grant(a_grant("never", 10))
    await store.add_subscriber(a_wallet("bob"))
    await store.add_grant(a_grant("bobs", 10, "bob", expire_time_us=LATER_US + 1))
    assert await store.expire_grants(LATER_US - 1, 10) == 0
    assert [await store.expire_grants(LATER_US, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert await available(store, LATER_US, "bob") == 10
    assert await store.expire_grants(LATER_US + 1, 2) == 1
    newest = (await store.list_transfers("bob", TransferFilter(), cursor=None, size=1)).rows[0]
    assert newest.credit_account == "breakage"
    assert len(await moved(store)) == 5


async def test_a_clock_that_jumps_back_brings_nothing_back(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle())
    await store.expire_grants(LATER_US, 10)
    assert await available(store, NOW_US) == 0, "what rolled over is in effect from the expiry on"
    await store.expire_grants(NOW_US, 10)
    assert await available(store, LATER_US) == 200


async def test_the_same_cycle_again_is_the_first_one_after_it_rolled_over(store: LedgerStore) -> None:
    await open_wallet(store, a_plan_cycle())
    await store.expire_grants(LATER_US, 10)
    again = await store.add_grant(a_plan_cycle(create_time_us=LATER_US))
    assert (again.amount_microcredits, again.remaining_microcredits) == (500, 0)
    assert await available(store, LATER_US) == 200


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"rollover_seconds": 0}, "rollover_seconds"),
        ({"rollover_seconds": -1}, "rollover_seconds"),
        ({"rollover_seconds": 2**62}, "rollover_seconds"),
        ({"most": 0}, "rollover_microcredits_max"),
        ({"most": -1}, "rollover_microcredits_max"),
        ({"most": 2**62 + 1}, "rollover_microcredits_max"),
        ({"expire_time_us": None}, "expire_time"),
        ({"source": GrantSource.ROLLOVER}, "rollover_microcredits_max"),
    ],
)
async def test_an_impossible_rule_is_refused(store: LedgerStore, values: dict[str, Any], field: str) -> None:
    await open_wallet(store)
    with pytest.raises(RequestInvalid, match=field):
        await store.add_grant(a_plan_cycle(**values))
    assert await grants(store) == {}


async def test_the_ids_of_the_ledgers_own_grants_cannot_be_taken(store: LedgerStore) -> None:
    await open_wallet(store)
    with pytest.raises(RequestInvalid, match="must not have a ':'"):
        await store.add_grant(a_grant("rollover:june"))

"""Refunds, adjustments, reversals, stopped wallets: what moves where, what is refused; asking again is harmless."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from ledger_rows import (
    DAY_SECONDS,
    DAY_US,
    NOW_US,
    a_grant,
    a_refund,
    a_reversal,
    a_settle,
    a_state_change,
    a_wallet,
    an_adjustment,
    available,
    differences,
    open_wallet,
    reserve,
)

from metergate.core import postings
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import (
    AlreadyReversed,
    IdConflict,
    InsufficientCredit,
    MetergateError,
    RefundExceedsCharge,
    RequestInvalid,
    ResourceNotFound,
    WalletSuspended,
)
from metergate.core.rows import Correction, CorrectionKind, Grant, GrantSource, TransferKind, WalletState
from metergate.ports import LedgerStore, TransferFilter

LATER_US = NOW_US + DAY_US


async def grants(store: LedgerStore) -> dict[str, Grant]:
    return {grant.grant_id: grant for grant in (await store.list_grants("alice", cursor=None, size=99)).rows}


async def remaining(store: LedgerStore) -> dict[str, int]:
    return {name: grant.remaining_microcredits for name, grant in (await grants(store)).items()}


async def moved(store: LedgerStore, *kinds: TransferKind) -> list[tuple[str, str, int]]:
    """Transfers of these kinds, oldest first."""
    rows = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows
    return [
        (row.debit_account, row.credit_account, row.amount_microcredits) for row in reversed(rows) if row.kind in kinds
    ]


async def charge(store: LedgerStore, amount: int, name: str = "res-1", now_us: int = NOW_US) -> None:
    await reserve(store, name, wanted_microcredits=max(10, amount), now_us=now_us)
    await store.settle(a_settle(amount, name, owner=store.owner, captured=amount, now_us=now_us))


async def everything(store: LedgerStore) -> Any:
    """All that a refused operation must leave as it was."""
    return (
        await store.balance("alice", "auth-1", NOW_US),
        await grants(store),
        (await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)).rows,
        (await store.list_corrections("alice", cursor=None, size=99)).rows,
    )


async def refused(store: LedgerStore, asking: Awaitable[Correction], error: type[MetergateError]) -> MetergateError:
    before = await everything(store)
    with pytest.raises(error) as caught:
        await asking
    assert await everything(store) == before
    return caught.value


# --- refunds --------------------------------------------------------------------------------------------------------


async def test_a_refund_goes_back_to_the_grants_that_paid_the_last_drawn_first(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("first", 60, priority=1), a_grant("second", 100))
    await charge(store, 100)
    refund = await store.refund(a_refund(50))
    assert (refund.kind, refund.charge_id, refund.amount_microcredits) == (CorrectionKind.REFUND, "charge-of-res-1", 50)
    assert (refund.reason, refund.actor) == ("as the test says", "the test")
    assert await moved(store, TransferKind.REFUND) == [
        ("revenue", "grant:second", 40),
        ("revenue", "grant:first", 10),
    ]
    assert await remaining(store) == {"first": 10, "second": 100}
    rows = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=2)).rows
    assert {(row.charge_id, row.correction_id) for row in rows} == {("charge-of-res-1", "refund-1")}


async def test_refunds_in_parts_are_as_one_and_never_above_the_charge(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("first", 60, priority=1), a_grant("second", 100))
    await charge(store, 100)
    await store.refund(a_refund(30))
    await store.refund(a_refund(30, correction_id="refund-2"))
    assert await remaining(store) == {"first": 20, "second": 100}
    refusal = await refused(store, store.refund(a_refund(41, correction_id="refund-3")), RefundExceedsCharge)
    assert refusal.metadata() == {
        "charge_id": "charge-of-res-1",
        "charged_microcredits": "100",
        "refunded_microcredits": "60",
        "amount_microcredits": "41",
    }
    await store.refund(a_refund(40, correction_id="refund-3"))
    assert await available(store) == 160
    assert (await store.get_charge("alice", "charge-of-res-1")).charged_microcredits == 100, "a charge is immutable"


async def test_a_refund_gives_the_authorizations_cap_room_again(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(), cap_microcredits=100)
    await charge(store, 100)
    await store.refund(a_refund(40))
    assert (await store.balance("alice", "auth-1", NOW_US)).spendable_microcredits == 40
    await charge(store, 40, "res-2")


async def test_what_an_expired_grant_paid_goes_to_a_grant_of_its_own_that_lives_as_long_as_asked(
    store: LedgerStore,
) -> None:
    await open_wallet(
        store,
        a_grant("soon", 30, priority=2, expire_time_us=LATER_US),
        a_grant("sooner", 30, priority=1, expire_time_us=LATER_US - 1),
        a_grant("never", 100),
    )
    await charge(store, 100)
    await store.refund(a_refund(90, now_us=LATER_US, grant_seconds=3 * DAY_SECONDS))
    assert await moved(store, TransferKind.REFUND) == [
        ("revenue", "grant:never", 40),
        ("revenue", "grant:refund-of-soon:refund-1", 30),
        ("revenue", "grant:refund-of-sooner:refund-1", 20),
    ]
    grant = (await grants(store))["refund-of-sooner:refund-1"]
    assert (grant.source, grant.priority, grant.amount_microcredits) == (GrantSource.REFUND, 1, 20)
    assert grant.expire_time_us == LATER_US + 3 * DAY_US
    assert await available(store, LATER_US) == 150
    # What such a grant pays in turn can be given back to it.
    await charge(store, 50, "res-2", LATER_US)
    await store.refund(a_refund(20, "charge-of-res-2", "refund-2", now_us=LATER_US))
    assert (await remaining(store))["refund-of-soon:refund-1"] == 20
    await store.refund(a_refund(10, correction_id="refund-3", now_us=LATER_US))
    assert (await remaining(store))["refund-of-sooner:refund-3"] == 10


async def test_what_goodwill_of_the_ledger_paid_is_refunded_to_a_grant_that_no_reversal_reaches(
    store: LedgerStore,
) -> None:
    await open_wallet(store)
    await store.adjust(an_adjustment(50, "gift", grant_seconds=DAY_SECONDS))
    await charge(store, 50)
    await store.refund(a_refund(50, now_us=LATER_US))
    assert await moved(store, TransferKind.REFUND) == [("revenue", "grant:refund:refund-1", 50)]


async def test_a_refund_asked_again_is_the_first_and_other_content_is_a_conflict(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await charge(store, 100)
    first = await store.refund(a_refund(40))
    assert await store.refund(a_refund(40, now_us=LATER_US)) == first
    assert await available(store) == 940
    for other in (
        a_refund(41),
        a_refund(40, "charge-of-res-2"),
        a_refund(40, grant_seconds=1),
        a_refund(40, reason="another"),
        a_refund(40, actor="another"),
    ):
        await refused(store, store.refund(other), IdConflict)
    await refused(store, store.adjust(an_adjustment(40, "refund-1")), IdConflict)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"amount": 101}, RefundExceedsCharge),
        ({"amount": 0}, RequestInvalid),
        ({"amount": -1}, RequestInvalid),
        ({"amount": 2**62 + 1}, RequestInvalid),
        ({"charge_id": "unknown"}, ResourceNotFound),
        ({"charge_id": "charge-of-bobs"}, ResourceNotFound),
        ({"subscriber_id": "nobody"}, ResourceNotFound),
        ({"grant_seconds": 0}, RequestInvalid),
        ({"grant_seconds": 2**62}, RequestInvalid),
        ({"reason": ""}, RequestInvalid),
        ({"actor": "line\nbreak"}, RequestInvalid),
        ({"correction_id": ""}, RequestInvalid),
    ],
)
async def test_a_refund_that_cannot_be_changes_nothing(
    store: LedgerStore, values: dict[str, Any], error: type[MetergateError]
) -> None:
    await open_wallet(store, a_grant())
    await store.add_subscriber(a_wallet("bob"))
    await charge(store, 100)
    await store.add_grant(a_grant("bobs", 100, "bob"))
    await refused(store, store.refund(a_refund(**({"amount": 10} | values))), error)


async def test_another_subscribers_charge_is_not_there(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await store.add_subscriber(a_wallet("bob"))
    await charge(store, 100)
    with pytest.raises(ResourceNotFound):
        await store.refund(a_refund(10, subscriber_id="bob"))


async def test_a_refund_beyond_what_a_wallet_may_hold_is_refused(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_wallet(store, a_grant("spent", 100, expire_time_us=LATER_US), a_grant("large", 100))
    await charge(store, 100)
    await store.add_grant(a_grant("most", 2**62 - 100))
    await refused(store, store.refund(a_refund(1)), RequestInvalid)
    monkeypatch.setattr(postings, "GRANTS_WITH_CREDIT_MAX", 2)
    await store.adjust(an_adjustment(-50))
    await refused(store, store.refund(a_refund(1)), RequestInvalid)


async def test_refunds_at_once_give_back_no_more_than_the_charge(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("first", 60, priority=1), a_grant("second", 100))
    await charge(store, 100)
    asking = [store.refund(a_refund(15, correction_id=f"refund-{number % 15}")) for number in range(30)]
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    refunded = {outcome.correction_id for outcome in outcomes if isinstance(outcome, Correction)}
    assert len(refunded) == 6
    assert {type(outcome) for outcome in outcomes} == {Correction, RefundExceedsCharge}
    assert await available(store) == 60 + 90


# --- adjustments ----------------------------------------------------------------------------------------------------


async def test_credit_that_is_given_is_a_grant_of_goodwill(store: LedgerStore) -> None:
    await open_wallet(store)
    await store.adjust(an_adjustment(70, grant_seconds=DAY_SECONDS))
    assert await moved(store, TransferKind.ADJUSTMENT) == [("goodwill", "grant:adjustment:adjustment-1", 70)]
    grant = (await grants(store))["adjustment:adjustment-1"]
    assert (grant.source, grant.expire_time_us) == (GrantSource.GIFT, LATER_US)
    await store.adjust(an_adjustment(30, "forever"))
    assert (await grants(store))["adjustment:forever"].expire_time_us is None
    assert await available(store) == 100


async def test_credit_that_is_taken_is_taken_in_burn_order_and_never_more_than_is_available(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("late", 60), a_grant("soon", 60, expire_time_us=LATER_US))
    await reserve(store, wanted_microcredits=20)
    refusal = await refused(store, store.adjust(an_adjustment(-101)), InsufficientCredit)
    assert refusal.metadata() == {"available_microcredits": "100", "required_microcredits": "101"}
    await store.adjust(an_adjustment(-50))
    assert await moved(store, TransferKind.ADJUSTMENT) == [
        ("grant:soon", "goodwill", 40),
        ("grant:late", "goodwill", 10),
    ]
    await store.adjust(an_adjustment(-50, "the-rest"))
    assert await available(store) == 0
    await store.settle(a_settle(9, owner=store.owner))


async def test_an_adjustment_asked_again_is_the_first_and_other_content_is_a_conflict(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    for amount in (70, -70):
        first = await store.adjust(an_adjustment(amount, str(amount)))
        assert await store.adjust(an_adjustment(amount, str(amount), now_us=LATER_US)) == first
        await refused(store, store.adjust(an_adjustment(amount + 1, str(amount))), IdConflict)
    assert await available(store) == 1_000


@pytest.mark.parametrize(
    ("amount", "values", "error"),
    [
        (0, {}, RequestInvalid),
        (2**62 + 1, {}, RequestInvalid),
        (-(2**62) - 1, {}, RequestInvalid),
        (2**62, {}, RequestInvalid),
        (10, {"grant_seconds": 0}, RequestInvalid),
        (-10, {"grant_seconds": 5}, RequestInvalid),
        (-1_001, {}, InsufficientCredit),
        (10, {"subscriber_id": "nobody"}, ResourceNotFound),
    ],
)
async def test_an_adjustment_that_cannot_be_changes_nothing(
    store: LedgerStore, amount: int, values: dict[str, Any], error: type[MetergateError]
) -> None:
    await open_wallet(store, a_grant())
    await refused(store, store.adjust(an_adjustment(amount, **values)), error)


# --- reversals ------------------------------------------------------------------------------------------------------


async def test_a_reversed_payment_takes_back_what_is_left_and_suspends_the_wallet_for_the_rest(
    store: LedgerStore,
) -> None:
    await open_wallet(store, a_grant("paid", 100, priority=1), a_grant("other", 100))
    await charge(store, 30)
    reversal = await store.reverse(a_reversal("paid"))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (70, 30)
    assert await moved(store, TransferKind.REVERSAL) == [("grant:paid", "reversals", 70)]
    assert (await grants(store))["paid"].reverse_time_us == NOW_US
    balance = await store.balance("alice", "auth-1", NOW_US)
    assert (balance.wallet.state, balance.available_microcredits) == (WalletState.SUSPENDED, 100)
    with pytest.raises(WalletSuspended):
        await reserve(store, "res-2")
    await store.set_wallet_state(a_state_change("paid-otherwise", WalletState.ACTIVE))
    await reserve(store, "res-2")


async def test_a_reversed_payment_of_which_nothing_was_used_suspends_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 100), a_grant("other", 100))
    reversal = await store.reverse(a_reversal("paid"))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (100, 0)
    await reserve(store)


async def test_what_comes_back_to_a_reversed_grant_is_taken_too(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 200))
    await charge(store, 50)
    await reserve(store, "open")
    reversal = await store.reverse(a_reversal("paid"))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (50, 150)
    await store.settle(a_settle(9, "open", owner=store.owner))
    await store.refund(a_refund(40))
    assert await moved(store, TransferKind.REVERSAL) == [
        ("grant:paid", "reversals", 50),
        ("grant:paid", "reversals", 91),
        ("grant:paid", "reversals", 40),
    ]
    assert await remaining(store) == {"paid": 0}


async def test_a_reversal_reaches_what_the_grant_rolled_over_into_also_later(store: LedgerStore) -> None:
    rule: dict[str, Any] = {"rollover_microcredits_max": 150, "rollover_seconds": DAY_SECONDS}
    await open_wallet(store, a_grant("june", 300, expire_time_us=LATER_US, source=GrantSource.PLAN_CYCLE, **rule))
    for name in ("res-1", "res-2"):
        await reserve(store, name)
    reversal = await store.reverse(a_reversal("june", now_us=LATER_US))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (100, 200)
    assert await moved(store, TransferKind.ROLLOVER, TransferKind.REVERSAL) == [
        ("grant:june", "grant:rollover:june", 100),
        ("grant:rollover:june", "reversals", 100),
    ]
    await store.settle(a_settle(None, "res-1", owner=store.owner, now_us=LATER_US))
    assert (await moved(store, TransferKind.REVERSAL))[-1] == ("grant:june", "reversals", 100)
    assert (await grants(store))["rollover:june"].reverse_time_us == LATER_US


@pytest.mark.parametrize("is_refunded_first", [True, False])
async def test_a_refund_leaves_nothing_of_a_reversed_payment_whichever_came_first(
    store: LedgerStore, is_refunded_first: bool
) -> None:
    await open_wallet(
        store,
        a_grant("other", 30, priority=1, expire_time_us=LATER_US),
        a_grant("paid", 100, priority=2, expire_time_us=LATER_US),
    )
    await charge(store, 100)
    refund = a_refund(90, now_us=LATER_US)
    if is_refunded_first:
        await store.refund(refund)
    reversal = await store.reverse(a_reversal("paid", now_us=LATER_US))
    if not is_refunded_first:
        await store.refund(refund)
    assert sum(amount for *_, amount in await moved(store, TransferKind.REVERSAL)) == 70
    assert reversal.amount_microcredits + reversal.shortfall_microcredits == 70, "30 expired"
    assert await remaining(store) == {"other": 0, "paid": 0, "refund-of-other:refund-1": 20} | (
        {"refund-of-paid:refund-1": 0} if is_refunded_first else {}
    )


async def test_a_reversal_reaches_what_was_refunded_again_and_what_is_refunded_later(store: LedgerStore) -> None:
    rule: dict[str, Any] = {"rollover_microcredits_max": 150, "rollover_seconds": DAY_SECONDS}
    await open_wallet(store, a_grant("june", 100, expire_time_us=LATER_US, source=GrantSource.PLAN_CYCLE, **rule))
    await charge(store, 100, now_us=LATER_US)  # the rollover grant pays it
    over_us = LATER_US + DAY_US
    await store.refund(a_refund(100, now_us=over_us))
    await charge(store, 80, "res-2", over_us)
    again_us = over_us + DAY_US
    await store.refund(a_refund(40, "charge-of-res-2", "refund-2", now_us=again_us))
    assert await available(store, again_us) == 40
    reversal = await store.reverse(a_reversal("june", now_us=again_us))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (40, 40), "20 expired"
    await store.refund(a_refund(40, "charge-of-res-2", "refund-3", now_us=again_us))
    assert await available(store, again_us + DAY_US) == 0
    assert set((await remaining(store)).values()) == {0}


async def test_what_expired_or_was_taken_by_hand_is_no_debt(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 100, priority=1, expire_time_us=LATER_US), a_grant("other", 100))
    await store.adjust(an_adjustment(-30))
    await store.expire_grants(LATER_US, 9)
    reversal = await store.reverse(a_reversal("paid", now_us=LATER_US))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (0, 0)
    await reserve(store, now_us=LATER_US)


async def test_what_expires_by_the_reversal_itself_is_no_debt(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 100, expire_time_us=LATER_US), a_grant("other", 100))
    await charge(store, 30)
    reversal = await store.reverse(a_reversal("paid", now_us=LATER_US))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (0, 30)


async def test_a_reversal_asked_again_is_the_first_and_a_second_one_is_refused(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 100), a_grant("other", 100))
    await charge(store, 30)
    first = await store.reverse(a_reversal("paid"))
    assert await store.reverse(a_reversal("paid", now_us=LATER_US)) == first
    await refused(store, store.reverse(a_reversal("other")), IdConflict)
    await refused(store, store.reverse(a_reversal("paid", "reversal-2")), AlreadyReversed)
    again = await store.add_grant(a_grant("paid", 100))
    assert again.remaining_microcredits == 0, "its payment asked again adds none"


async def test_what_nobody_paid_for_or_is_not_there_is_not_reversed(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("gift", 100, source=GrantSource.GIFT))
    await refused(store, store.reverse(a_reversal("gift")), RequestInvalid)
    await refused(store, store.reverse(a_reversal("unknown")), ResourceNotFound)
    await refused(store, store.reverse(a_reversal("gift", subscriber_id="nobody")), ResourceNotFound)


async def test_another_subscribers_grant_is_not_reversed(store: LedgerStore) -> None:
    await open_wallet(store)
    await store.add_subscriber(a_wallet("bob"))
    await store.add_grant(a_grant("bobs", 100, "bob"))
    await refused(store, store.reverse(a_reversal("bobs")), ResourceNotFound)
    assert await available(store, NOW_US, "bob") == 100


@pytest.mark.parametrize("values", [{"correction_id": ""}, {"reason": ""}, {"actor": "line\nbreak"}])
async def test_every_correction_says_by_what_id_why_and_by_whom(store: LedgerStore, values: dict[str, str]) -> None:
    await open_wallet(store, a_grant())
    hers: dict[str, Any] = {"correction_id": "c-1"} | values
    name = hers.pop("correction_id")
    await refused(store, store.adjust(an_adjustment(5, name, **hers)), RequestInvalid)
    await refused(store, store.reverse(a_reversal("grant-1", name, **hers)), RequestInvalid)
    await refused(store, store.set_wallet_state(a_state_change(name, WalletState.SUSPENDED, **hers)), RequestInvalid)


async def test_an_id_of_a_correction_is_of_one_kind_only(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("paid", 100))
    await store.adjust(an_adjustment(5, "used"))
    await refused(store, store.refund(a_refund(5, "charge-of-res-1", "used")), IdConflict)
    await refused(store, store.reverse(a_reversal("paid", "used")), IdConflict)
    await refused(store, store.set_wallet_state(a_state_change("used", WalletState.ACTIVE)), IdConflict)


# --- stopping a wallet ----------------------------------------------------------------------------------------------


async def test_a_stopped_wallet_is_spent_from_again_once_it_is_let_go_on(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    stopped = await store.set_wallet_state(a_state_change("stop", WalletState.SUSPENDED))
    assert (stopped.kind, stopped.amount_microcredits) == (CorrectionKind.SUSPENSION, 0)
    with pytest.raises(WalletSuspended):
        await reserve(store, "res-2")
    await store.settle(a_settle(9, owner=store.owner))  # what runs ends as it would have
    gone_on = await store.set_wallet_state(a_state_change("go on", WalletState.ACTIVE))
    assert gone_on.kind is CorrectionKind.RESUMPTION
    assert await store.set_wallet_state(a_state_change("stop", WalletState.SUSPENDED)) == stopped, "an old question"
    await reserve(store, "res-2")
    await refused(store, store.set_wallet_state(a_state_change("stop", WalletState.ACTIVE)), IdConflict)
    with pytest.raises(ResourceNotFound):
        await store.set_wallet_state(a_state_change("stop", WalletState.ACTIVE, subscriber_id="nobody"))


async def test_corrections_are_listed_newest_first_in_pages(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    for number in range(3):
        await store.adjust(an_adjustment(5, f"a{number}"))
    page = await store.list_corrections("alice", cursor=None, size=2)
    assert [row.correction_id for row in page.rows] == ["a2", "a1"]
    page = await store.list_corrections("alice", cursor=page.next_cursor, size=2)
    assert ([row.correction_id for row in page.rows], page.next_cursor) == (["a0"], None)
    assert (await store.list_corrections("bob", cursor=None, size=2)).rows == ()


async def test_the_largest_amounts_may_be_charged_and_refunded_again_and_again(store: LedgerStore) -> None:
    """Their sum is more than 64 bits: the audit must be able to add them up."""
    largest = AMOUNT_MICROCREDITS_MAX
    await open_wallet(store, a_grant("largest", largest))
    for number in range(5):
        name = f"res-{number}"
        await reserve(store, name, wanted_microcredits=largest // 2, limit_microcredits=largest)
        await store.settle(a_settle(largest // 2, name, owner=store.owner, captured=largest // 2))
        await store.refund(a_refund(largest // 2, f"charge-of-{name}", correction_id=name))
        assert await available(store) == largest
        assert await differences(store) == []
        await store.adjust(an_adjustment(-largest, f"taken-{number}"))
        await store.adjust(an_adjustment(largest, f"given-{number}"))
        assert await differences(store) == []

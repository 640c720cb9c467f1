"""What every LedgerStore promises, whatever it is made of."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from ledger_rows import (
    CARD,
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_key,
    a_reserve,
    a_settle,
    a_state_change,
    a_wallet,
    available,
    open_wallet,
    reserve,
)

from metergate.core import postings
from metergate.core.errors import (
    AuthorizationRevoked,
    CapReached,
    IdConflict,
    InsufficientCredit,
    LedgerInvariantBroken,
    MetergateError,
    RequestIdConflict,
    RequestInProgress,
    RequestInvalid,
    ReservationNotOwned,
    ResourceNotFound,
    StoreUnavailable,
    WalletSuspended,
)
from metergate.core.operations import AddGrant, CaptureStatus, Replayed, Reserve, Reserved, Settle
from metergate.core.rating import RateCard
from metergate.core.reservation import Allocation, CloseCause, Owner
from metergate.core.rows import Attempt, Channel, Charge, FinishReason, GrantSource, TransferKind, WalletState
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.ports import ChargeFilter, LedgerStore, TransferFilter

OTHER_OWNER = Owner(owner_id="gateway-1", epoch=99)


# --- reserving ------------------------------------------------------------------------------------------------------


async def test_a_reserve_takes_what_is_wanted_and_captures_the_prompt(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=1_000))
    reservation = await reserve(store)
    assert (reservation.reserved_microcredits, reservation.captured_microcredits) == (100, 9)
    balance = await store.balance("alice", "auth-1", NOW_US)
    assert (balance.available_microcredits, balance.reserved_microcredits) == (900, 100)


async def test_a_reserve_takes_less_than_wanted_when_less_is_available(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=40))
    assert (await reserve(store)).reserved_microcredits == 40


@pytest.mark.parametrize(
    ("values", "cap", "amount", "error"),
    [
        ({}, None, 9, InsufficientCredit),
        ({"limit_microcredits": 9}, None, 1_000, CapReached),
        ({}, 9, 1_000, CapReached),
        ({"authorization_id": "nobody"}, None, 1_000, ResourceNotFound),
        ({"subscriber_id": "nobody"}, None, 1_000, ResourceNotFound),
        ({"capture_microcredits": 11}, None, 1_000, LedgerInvariantBroken),
        ({"wanted_microcredits": 9}, None, 1_000, LedgerInvariantBroken),
        ({"owner": OTHER_OWNER}, None, 1_000, StoreUnavailable),
    ],
)
async def test_a_refused_reserve_changes_nothing(
    store: LedgerStore, values: dict[str, Any], cap: int | None, amount: int, error: type[MetergateError]
) -> None:
    await open_wallet(store, a_grant(amount=amount), cap_microcredits=cap)
    before = await store.balance("alice", "auth-1", NOW_US)
    with pytest.raises(error):
        await store.reserve(a_reserve(**({"owner": store.owner} | values)))
    assert await store.balance("alice", "auth-1", NOW_US) == before


async def test_a_suspended_wallet_reserves_nothing(store: LedgerStore) -> None:
    await store.add_subscriber(a_wallet())
    await store.set_wallet_state(a_state_change("stop", WalletState.SUSPENDED))
    await store.add_authorization(a_consent())
    await store.add_grant(a_grant())
    with pytest.raises(WalletSuspended):
        await reserve(store)


async def test_a_revoked_authorization_reserves_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(), revoke_time_us=NOW_US)
    with pytest.raises(AuthorizationRevoked):
        await reserve(store)


async def test_the_same_reserve_again_is_the_same_reservation(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    assert await reserve(store) == await reserve(store)
    assert await available(store) == 900


async def test_a_request_runs_once_at_a_time_and_its_id_stands_for_its_content(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store, request_id="r")
    with pytest.raises(RequestInProgress):
        await reserve(store, "res-2", request_id="r")
    with pytest.raises(RequestIdConflict):
        await reserve(store, request_id="r", content_hash=b"other")


async def test_a_charged_request_is_replayed_and_other_content_is_refused(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store, request_id="r")
    settled = await store.settle(a_settle(9, owner=store.owner))
    again = await store.reserve(a_reserve("res-2", request_id="r", owner=store.owner))
    assert again == Replayed(charge=settled.charge, spendable_microcredits=991)  # type: ignore[arg-type]
    with pytest.raises(RequestIdConflict):
        await reserve(store, "res-2", request_id="r", content_hash=b"other")


async def test_a_released_request_may_run_again_but_not_under_the_old_reservation_id(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store, request_id="r")
    await store.settle(a_settle(None, owner=store.owner))
    with pytest.raises(LedgerInvariantBroken):
        await reserve(store, request_id="r")
    assert (await reserve(store, "res-2", request_id="r")).reserved_microcredits == 100


async def test_what_became_of_a_request_is_its_reservation_while_it_runs_then_its_charge(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=1_000), cap_microcredits=500)
    await store.add_authorization(a_consent("auth-2"))
    request = ("alice", "auth-1", "r", NOW_US)
    assert await store.find_request(*request) is None
    reservation = await reserve(store, request_id="r")
    assert await store.find_request(*request) == reservation
    settled = await store.settle(a_settle(9, owner=store.owner))
    assert settled.charge is not None
    assert await store.find_request(*request) == Replayed(charge=settled.charge, spendable_microcredits=491)
    for other in (("bob", "auth-1", "r"), ("alice", "auth-2", "r"), ("alice", "auth-1", "R")):
        assert await store.find_request(*other, NOW_US) is None


async def test_a_request_that_was_released_became_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store, request_id="r")
    await store.settle(a_settle(None, owner=store.owner))
    assert await store.find_request("alice", "auth-1", "r", NOW_US) is None


# --- capturing ------------------------------------------------------------------------------------------------------


async def test_a_capture_within_the_reservation_debits_it(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    captured = await store.capture(a_capture(50, owner=store.owner, delivered_microcredits=9))
    assert (captured.status, captured.captured_microcredits, captured.reserved_microcredits) == ("OPEN", 50, 100)
    lower = await store.capture(a_capture(20, owner=store.owner))
    assert lower.captured_microcredits == 50


async def test_a_capture_extends_the_reservation_across_grants(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("g1", 150), a_grant("g2", 150))
    await reserve(store)
    captured = await store.capture(a_capture(110, owner=store.owner, wanted_microcredits=200))
    assert (captured.captured_microcredits, captured.reserved_microcredits) == (110, 200)
    assert captured.refusal is None
    assert await available(store) == 100


@pytest.mark.parametrize(
    ("cap", "limit", "amount", "refusal"),
    [
        (None, 10_000, 150, CloseCause.CREDIT_EXHAUSTED),
        (150, 10_000, 1_000, CloseCause.CAP_REACHED),
        (None, 150, 1_000, CloseCause.CREDIT_LIMIT_REACHED),
    ],
)
async def test_a_refused_extension_says_why_and_never_voids_a_capture_that_fits(
    store: LedgerStore, cap: int | None, limit: int, amount: int, refusal: CloseCause
) -> None:
    await open_wallet(store, a_grant(amount=amount), cap_microcredits=cap)
    await reserve(store, limit_microcredits=limit)
    fits = await store.capture(a_capture(140, owner=store.owner, wanted_microcredits=200))
    assert (fits.captured_microcredits, fits.reserved_microcredits, fits.refusal) == (140, 150, refusal)
    too_much = await store.capture(a_capture(151, owner=store.owner))
    assert (too_much.captured_microcredits, too_much.reserved_microcredits, too_much.refusal) == (140, 150, refusal)


async def test_captures_of_closed_unknown_and_foreign_reservations_take_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    assert (await store.capture(a_capture(50, owner=OTHER_OWNER))).status is CaptureStatus.NOT_OWNER
    assert (await store.capture(a_capture(50, "unknown", owner=store.owner))).status is CaptureStatus.CLOSED
    foreign = a_capture(50, owner=store.owner, subscriber_id="bob")
    assert (await store.capture(foreign)).status is CaptureStatus.CLOSED
    await store.settle(a_settle(9, owner=store.owner))
    closed = await store.capture(a_capture(50, owner=store.owner))
    assert (closed.status, closed.captured_microcredits) == (CaptureStatus.CLOSED, 9)


async def test_more_delivered_than_captured_is_refused_as_a_defect(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    with pytest.raises(LedgerInvariantBroken):
        await store.capture(a_capture(50, owner=store.owner, delivered_microcredits=51))


# --- settling -------------------------------------------------------------------------------------------------------


async def test_a_settle_charges_in_burn_order_and_gives_the_rest_back(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("late", 60), a_grant("soon", 60, expire_time_us=NOW_US + DAY_US))
    await reserve(store)
    settled = await store.settle(a_settle(80, owner=store.owner, captured=90))
    assert settled.charge is not None
    assert (settled.charge.charged_microcredits, settled.charge.captured_microcredits) == (80, 90)
    assert settled.spendable_microcredits == 40
    page = await store.list_transfers("alice", TransferFilter(app_id="app-1"), cursor=None, size=10)
    assert [(row.grant_id, row.amount_microcredits) for row in page.rows] == [("late", 20), ("soon", 60)]


async def test_a_charge_is_kept_with_everything_that_is_known_of_its_request(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("soon", 30, priority=1), a_grant("late", 100), channel=Channel.CLOUD_PHONE)
    await reserve(store)
    operation = a_settle(50, owner=store.owner, captured=60, now_us=NOW_US + 5)
    assert operation.settlement is not None
    settlement = replace(
        operation.settlement,
        usage_reported=Usage.of({TokenClass.PROMPT: 7, TokenClass.CACHED_PROMPT: 5, TokenClass.REASONING: 3}),
        usage_mismatch=True,
        attempts=(Attempt(backend_id="first", problem="refused"), Attempt(backend_id="second", problem="")),
        finish_reason=FinishReason.LENGTH,
    )
    await store.settle(replace(operation, settlement=settlement))
    assert await store.get_charge("alice", "charge-of-res-1") == Charge(
        charge_id="charge-of-res-1",
        reservation_id="res-1",
        subscriber_id="alice",
        authorization_id="auth-1",
        app_id="app-1",
        channel=Channel.CLOUD_PHONE,
        request_id="request-of-res-1",
        content_hash=b"content",
        model_id="model-1",
        provider_id="provider-1",
        attempts=settlement.attempts,
        counting_source=CountingSource.TOKENIZER,
        usage_counted=Usage.of({TokenClass.COMPLETION: 50}),
        usage_reported=settlement.usage_reported,
        usage_mismatch=True,
        rate_card_id="card-1",
        captured_microcredits=60,
        charged_microcredits=50,
        delivered_microcredits=50,
        allocations=(
            Allocation(grant_id="soon", amount_microcredits=30),
            Allocation(grant_id="late", amount_microcredits=20),
        ),
        finish_reason=FinishReason.LENGTH,
        close_cause=CloseCause.FINISHED,
        create_time_us=NOW_US,
        settle_time_us=NOW_US + 5,
    )


async def test_a_settle_again_is_the_first_outcome(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    first = await store.settle(a_settle(9, owner=store.owner))
    assert await store.settle(a_settle(None, owner=OTHER_OWNER)) == first
    assert await available(store) == 991


async def test_a_release_gives_everything_back_and_charges_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    settled = await store.settle(a_settle(None, owner=store.owner, close_cause=CloseCause.BACKEND_ERROR))
    assert (settled.charge, settled.spendable_microcredits) == (None, 1_000)
    assert (await store.settle(a_settle(9, owner=store.owner))).charge is None


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (a_settle(10), LedgerInvariantBroken),
        (a_settle(50, captured=101), LedgerInvariantBroken),
        (a_settle(-1), LedgerInvariantBroken),
        (a_settle(9, "unknown"), ResourceNotFound),
    ],
)
async def test_a_refused_settle_leaves_the_reservation_open(
    store: LedgerStore, operation: Settle, error: type[MetergateError]
) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    with pytest.raises(error):
        await store.settle(replace(operation, owner=store.owner))
    assert (await store.balance("alice", None, NOW_US)).reserved_microcredits == 100


async def test_only_its_owner_settles_a_reservation(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    with pytest.raises(ReservationNotOwned):
        await store.settle(a_settle(9, owner=OTHER_OWNER))


async def test_a_charge_id_is_used_once(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store, "res-1")
    await reserve(store, "res-2")
    await store.settle(a_settle(9, "res-1", owner=store.owner, charge_id="c"))
    with pytest.raises(LedgerInvariantBroken):
        await store.settle(a_settle(9, "res-2", owner=store.owner, charge_id="c"))


# --- expiry ---------------------------------------------------------------------------------------------------------


async def test_what_remains_of_an_expired_grant_becomes_breakage_once(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("old", 500, expire_time_us=NOW_US + DAY_US), a_grant("new", 500))
    later = NOW_US + DAY_US
    assert await available(store, later) == 500
    await reserve(store, now_us=later)
    await reserve(store, "res-2", now_us=NOW_US)  # the clock jumps back: what expired stays expired
    await reserve(store, "res-3", now_us=later)
    page = await store.list_transfers("alice", TransferFilter(), cursor=None, size=10)
    expired = [row.amount_microcredits for row in page.rows if row.kind is TransferKind.EXPIRY]
    assert expired == [500]


async def test_credit_that_comes_back_to_an_expired_grant_is_not_available(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("old", 100, expire_time_us=NOW_US + DAY_US))
    await reserve(store)
    settled = await store.settle(a_settle(9, owner=store.owner, now_us=NOW_US + DAY_US))
    assert settled.spendable_microcredits == 0
    assert await available(store, NOW_US) == 0


async def test_a_grant_that_is_not_yet_in_effect_cannot_be_spent(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(effective_time_us=NOW_US + 1))
    with pytest.raises(InsufficientCredit):
        await reserve(store)
    assert (await reserve(store, now_us=NOW_US + 1)).reserved_microcredits == 100


# --- setting up -----------------------------------------------------------------------------------------------------


async def test_setting_up_twice_is_harmless_and_other_content_is_refused(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    assert (await store.add_subscriber(a_wallet())).sequence == 1
    assert (await store.add_grant(a_grant(create_time_us=NOW_US + 5))).create_time_us == NOW_US
    await store.add_authorization(a_consent(create_time_us=NOW_US + 5))
    await store.add_key(a_key())
    await store.add_key(a_key())
    await store.add_rate_cards([CARD])
    assert await available(store) == 1_000
    other_price = RateCard(
        rate_card_id=CARD.rate_card_id,
        model_id=CARD.model_id,
        effective_time_us=0,
        expire_time_us=None,
        prices=tuple((kind, 2) for kind in TokenClass),
    )
    for conflict in (
        store.add_grant(a_grant(amount=999)),
        store.add_authorization(a_consent(cap_microcredits=5)),
        store.add_key(a_key(secret_hash=b"x" * 32)),
        store.add_rate_cards([other_price]),
    ):
        with pytest.raises(IdConflict):
            await conflict


async def test_setting_up_for_nobody_is_refused(store: LedgerStore) -> None:
    for nobody in (store.add_grant(a_grant()), store.add_authorization(a_consent()), store.add_key(a_key())):
        with pytest.raises(ResourceNotFound):
            await nobody


@pytest.mark.parametrize(
    "grant",
    [
        a_grant(amount=0),
        a_grant(amount=-1),
        a_grant(amount=2**62 + 1),
        a_grant(amount=2**63),
        a_grant(expire_time_us=0),
        a_grant(effective_time_us=NOW_US, expire_time_us=NOW_US - 1),
        a_grant(expire_time_us=-1),
        a_grant(remaining_microcredits=1),
        a_grant(effective_time_us=-1),
        a_grant(expire_time_us=2**62),
    ],
)
async def test_an_impossible_grant_is_refused_and_nothing_changes(store: LedgerStore, grant: AddGrant) -> None:
    await open_wallet(store)
    with pytest.raises(RequestInvalid):
        await store.add_grant(grant)
    assert (await store.list_grants("alice", cursor=None, size=9)).rows == ()
    assert (await store.list_transfers("alice", TransferFilter(), cursor=None, size=9)).rows == ()


@pytest.mark.parametrize(
    "values",
    [
        {"amount": 999},
        {"source": GrantSource.GIFT},
        {"priority": 11},
        {"effective_time_us": 1},
        {"expire_time_us": NOW_US + 6},
        {"rollover_microcredits_max": 6},
        {"rollover_seconds": 61},
    ],
)
async def test_a_grants_id_stands_for_all_of_its_content(store: LedgerStore, values: dict[str, Any]) -> None:
    terms: dict[str, Any] = {
        "expire_time_us": NOW_US + 5,
        "rollover_microcredits_max": 5,
        "rollover_seconds": 60,
    }
    await open_wallet(store, a_grant(**terms))
    with pytest.raises(IdConflict):
        await store.add_grant(a_grant(**(terms | values)))
    assert await available(store) == 1_000


async def test_a_wallet_never_holds_more_than_an_amount_can_say(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("most", 2**62 - 10))
    await reserve(store)
    with pytest.raises(RequestInvalid):
        await store.add_grant(a_grant("more", 11))
    await store.add_grant(a_grant("just", 10))
    assert await available(store) == 2**62 - 100


async def test_a_key_is_found_by_its_hash_and_a_revocation_keeps_its_first_time(store: LedgerStore) -> None:
    await open_wallet(store)
    await store.add_key(a_key())
    assert await store.find_grantee(b"unknown") is None
    await store.revoke_key("key-1", NOW_US + 1)
    await store.revoke_key("key-1", NOW_US + 2)
    grantee = await store.find_grantee(b"h" * 32)
    assert grantee is not None
    assert grantee.key.revoke_time_us == NOW_US + 1
    assert grantee.authorization.authorization_id == "auth-1"
    with pytest.raises(ResourceNotFound):
        await store.revoke_key("unknown", NOW_US)


# --- reading --------------------------------------------------------------------------------------------------------


async def test_pages_join_up_to_the_whole_list_newest_first(store: LedgerStore) -> None:
    await open_wallet(store, *(a_grant(f"g{number}") for number in range(5)))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list_grants("alice", cursor=cursor, size=2)
        found += [row.grant_id for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ["g4", "g3", "g2", "g1", "g0"]
    with pytest.raises(RequestInvalid):
        await store.list_grants("alice", cursor="nonsense", size=2)


async def test_charges_are_listed_by_every_filter(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await store.add_authorization(a_consent("auth-2", app_id="app-2"))
    for number, authorization in enumerate(("auth-1", "auth-2")):
        await reserve(store, f"res-{number}", authorization_id=authorization)
        await store.settle(a_settle(9, f"res-{number}", owner=store.owner, now_us=NOW_US + number))

    async def found(where: ChargeFilter) -> list[str]:
        return [row.charge_id for row in (await store.list_charges("alice", where, cursor=None, size=9)).rows]

    assert await found(ChargeFilter()) == ["charge-of-res-1", "charge-of-res-0"]
    assert await found(ChargeFilter(app_id="app-2")) == ["charge-of-res-1"]
    assert await found(ChargeFilter(authorization_id="auth-1", model_id="model-1")) == ["charge-of-res-0"]
    assert await found(ChargeFilter(model_id="other")) == []
    assert await found(ChargeFilter(settle_time_us_min=NOW_US + 1)) == ["charge-of-res-1"]
    assert await found(ChargeFilter(settle_time_us_max=NOW_US + 1)) == ["charge-of-res-0"]
    assert (await store.get_charge("alice", "charge-of-res-1")).app_id == "app-2"
    for subscriber_id, charge_id in (("bob", "charge-of-res-1"), ("alice", "unknown")):
        with pytest.raises(ResourceNotFound):
            await store.get_charge(subscriber_id, charge_id)


async def test_transfers_are_listed_by_every_filter(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    await store.settle(a_settle(9, owner=store.owner, now_us=NOW_US + 1))

    async def found(where: TransferFilter) -> list[int]:
        return [row.sequence for row in (await store.list_transfers("alice", where, cursor=None, size=9)).rows]

    assert await found(TransferFilter()) == [2, 1]
    assert await found(TransferFilter(app_id="app-1", model_id="model-1")) == [2]
    assert await found(TransferFilter(app_id="other")) == []
    assert await found(TransferFilter(create_time_us_min=NOW_US + 1)) == [2]
    assert await found(TransferFilter(create_time_us_max=NOW_US + 1)) == [1]


async def test_what_an_authorization_may_spend_is_bounded_by_its_cap(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(), cap_microcredits=300)
    await reserve(store)
    balance = await store.balance("alice", "auth-1", NOW_US)
    assert (balance.available_microcredits, balance.spendable_microcredits) == (900, 200)
    for subscriber_id, authorization_id in (("bob", None), ("alice", "unknown")):
        with pytest.raises(ResourceNotFound):
            await store.balance(subscriber_id, authorization_id, NOW_US)


# --- many at once ---------------------------------------------------------------------------------------------------


async def test_fifty_reserves_at_once_overdraw_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("g1", 1_000), a_grant("g2", 1_050))
    outcomes = await asyncio.gather(
        *(store.reserve(a_reserve(f"res-{number}", owner=store.owner)) for number in range(50)),
        return_exceptions=True,
    )
    reserved = [outcome.reservation.reserved_microcredits for outcome in outcomes if isinstance(outcome, Reserved)]
    assert sorted(reserved) == [50] + [100] * 20
    assert sum(isinstance(outcome, InsufficientCredit) for outcome in outcomes) == 29
    assert await available(store) == 0


async def test_the_same_request_at_once_runs_once(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    outcomes = await asyncio.gather(
        *(store.reserve(a_reserve(f"res-{number}", request_id="r", owner=store.owner)) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Reserved) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, RequestInProgress) for outcome in outcomes) == 19


async def test_a_refused_operation_does_not_disturb_the_others_at_its_side(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    outcomes = await asyncio.gather(
        store.capture(a_capture(50, owner=store.owner)),
        store.capture(a_capture(60, owner=store.owner, delivered_microcredits=10_000)),
        store.add_grant(a_grant("other", 0)),
        store.add_grant(a_grant("good", 5)),
        store.settle(a_settle(9, "unknown", owner=store.owner)),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Captured", "LedgerInvariantBroken", "RequestInvalid", "Grant", "ResourceNotFound"]


async def test_an_operation_is_carried_out_though_its_caller_was_cancelled(store: LedgerStore) -> None:
    await open_wallet(store, a_grant())
    operation: Reserve = a_reserve(owner=store.owner)
    caller = asyncio.ensure_future(store.reserve(operation))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    again = await store.reserve(operation)  # answered with the first outcome, from the commit that nobody awaited
    assert isinstance(again, Reserved)
    assert await available(store) == 900


# --- ids and bounds -------------------------------------------------------------------------------------------------

BAD_IDS = ["", "nul\0", "line\nbreak", "half \ud800", "x" * 257]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_an_id_that_is_not_short_and_printable_is_refused(store: LedgerStore, bad: str) -> None:
    await open_wallet(store, a_grant())
    for asking in (
        store.add_subscriber(a_wallet(bad)),
        store.add_authorization(a_consent(bad)),
        store.add_authorization(a_consent("auth-2", allowed_models=("model-1", bad))),
        store.add_grant(a_grant(bad)),
        store.reserve(a_reserve(request_id=bad, owner=store.owner)),
    ):
        with pytest.raises(RequestInvalid, match="printable"):
            await asking
    with pytest.raises(LedgerInvariantBroken):
        await store.reserve(a_reserve(bad, request_id="good", owner=store.owner))
    await reserve(store)
    with pytest.raises(LedgerInvariantBroken):
        await store.settle(a_settle(9, owner=store.owner, charge_id=bad))


async def test_a_wallet_holds_a_bounded_number_of_grants_with_credit(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postings, "GRANTS_WITH_CREDIT_MAX", 3)
    await open_wallet(store, a_grant("g1", 10, priority=1), *(a_grant(f"g{number}", 100) for number in (2, 3)))
    with pytest.raises(RequestInvalid, match="3 grants with credit"):
        await store.add_grant(a_grant("g4"))
    assert (await store.add_grant(a_grant("g3", 100))).grant_id == "g3", "a repeated question adds none"
    await reserve(store, minimum_microcredits=10, wanted_microcredits=10)  # g1 is spent
    await store.add_grant(a_grant("g4", expire_time_us=NOW_US + 1))
    later = a_grant("g5", create_time_us=NOW_US + 1)
    await store.add_grant(later)  # g4 is expired
    assert await available(store, NOW_US + 1) == 1_200


async def test_a_stopped_wallet_or_authorization_may_spend_nothing(store: LedgerStore) -> None:
    await store.add_subscriber(a_wallet())
    await store.set_wallet_state(a_state_change("stop", WalletState.SUSPENDED))
    await store.add_authorization(a_consent())
    await store.add_grant(a_grant())
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob", revoke_time_us=NOW_US))
    await store.add_grant(a_grant("grant-1", 10, "bob"))
    for subscriber_id, authorization_id in (("alice", "auth-1"), ("bob", "auth-bob")):
        balance = await store.balance(subscriber_id, authorization_id, NOW_US)
        assert balance.available_microcredits > 0
        assert balance.spendable_microcredits == 0


async def test_the_same_subscriber_again_is_the_wallet_as_it_is_now(store: LedgerStore) -> None:
    await store.add_subscriber(a_wallet())
    await store.set_wallet_state(a_state_change("stop", WalletState.SUSPENDED))
    assert (await store.add_subscriber(a_wallet())).state is WalletState.SUSPENDED


async def test_a_new_wallet_is_not_stopped_already(store: LedgerStore) -> None:
    with pytest.raises(LedgerInvariantBroken, match="a new wallet is ACTIVE"):
        await store.add_subscriber(a_wallet(state=WalletState.SUSPENDED))
    with pytest.raises(ResourceNotFound):
        await store.balance("alice", None, NOW_US)


async def test_a_secret_has_one_key(store: LedgerStore) -> None:
    await open_wallet(store)
    await store.add_key(a_key())
    with pytest.raises(IdConflict):
        await store.add_key(a_key("key-2"))


async def test_a_check_writes_and_changes_nothing(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=1_000))
    before = await store.balance("alice", "auth-1", NOW_US)
    await store.check()
    assert await store.balance("alice", "auth-1", NOW_US) == before


async def test_grants_that_expire_together_are_posted_in_burn_order(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("never", 100))
    await store.add_grant(a_grant("later", 10, expire_time_us=NOW_US + 2))
    await store.add_grant(a_grant("sooner", 10, expire_time_us=NOW_US + 1))
    await reserve(store, wanted_microcredits=120)
    await store.settle(a_settle(None, owner=store.owner, now_us=NOW_US + 2))
    transfers = (await store.list_transfers("alice", TransferFilter(), cursor=None, size=2)).rows
    assert [transfer.grant_id for transfer in transfers] == ["later", "sooner"]


# --- counted and reported -------------------------------------------------------------------------------------------


async def charge(store: LedgerStore, number: int, reported: Usage | None, **values: Any) -> None:
    """Settle a request that counted ten tokens."""
    name = f"res-{number}"
    settle = a_settle(10, name, captured=10, owner=store.owner, **values)
    assert settle.settlement is not None
    mismatch = reported is not None and reported.total() != 10 and settle.close_cause is CloseCause.FINISHED
    settlement = replace(settle.settlement, usage_reported=reported, usage_mismatch=mismatch)
    await reserve(store, name, now_us=settle.now_us)
    await store.settle(replace(settle, settlement=settlement))


async def test_usage_is_compared_by_day_and_backend_for_answers_that_ended_by_themselves(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=10_000))
    tomorrow_us = NOW_US + DAY_US
    await charge(store, 1, Usage.of({TokenClass.COMPLETION: 10}))
    await charge(store, 2, Usage.of({TokenClass.PROMPT: 5, TokenClass.COMPLETION: 9}))
    await charge(store, 3, None)
    await charge(store, 4, Usage())
    await charge(store, 5, Usage.of({TokenClass.COMPLETION: 2}), close_cause=CloseCause.CLIENT_CANCELLED)
    await charge(store, 6, Usage.of({TokenClass.COMPLETION: 11}), now_us=tomorrow_us)
    today, tomorrow = await store.compare_usage(0)
    assert (today.day_us, tomorrow.day_us) == (NOW_US // DAY_US * DAY_US, tomorrow_us // DAY_US * DAY_US)
    assert (today.backend_id, today.model_id, today.counting_source) == ("backend-1", "model-1", "TOKENIZER")
    assert (today.charges, today.unreported_charges, today.mismatched_charges) == (4, 1, 2)
    assert (today.counted_tokens, today.reported_tokens) == (30, 24)
    assert (tomorrow.charges, tomorrow.counted_tokens, tomorrow.reported_tokens) == (1, 10, 11)
    assert await store.compare_usage(tomorrow_us) == (tomorrow,)
    assert await store.compare_usage(tomorrow_us + 1) == ()

"""The pure ledger: its order, its refusals, and the law of conservation under any sequence of operations."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ledger_rows import (
    DAY_SECONDS,
    DAY_US,
    NOW_US,
    OWNER,
    a_capture,
    a_consent,
    a_grant,
    a_refund,
    a_reserve,
    a_reversal,
    a_settle,
    a_state_change,
    a_wallet,
    an_adjustment,
)

from metergate.core.batches import Operation, place
from metergate.core.books import Books
from metergate.core.errors import MetergateError
from metergate.core.grants import origin_of
from metergate.core.ledger import Ledger
from metergate.core.operations import Captured, CaptureStatus, Expire, Recover, Reserved, Settled
from metergate.core.reservation import CloseCause, Owner, ReservationState
from metergate.core.rows import (
    REVENUE_ACCOUNT,
    Correction,
    Grant,
    GrantSource,
    TransferKind,
    WalletState,
    grant_account,
)

HEIR = Owner(owner_id="gateway-2", epoch=2)


def recover(reservation_id: str = "res-1", survivor: Owner = HEIR) -> Recover:
    return Recover(
        reservation_id=reservation_id,
        subscriber_id="alice",
        charge_id=f"recovery-of-{reservation_id}",
        survivor=survivor,
        now_us=NOW_US,
    )


@pytest.fixture
def ledger() -> Ledger:
    opened = Ledger(Books())
    for operation in (a_wallet(), a_consent(), a_grant()):
        opened.decide(operation)
    return opened


def test_a_batch_is_decided_captures_first_then_settles_then_the_rest_as_they_came() -> None:
    batch: list[Operation] = [a_grant(), a_settle(1), a_reserve(), a_capture(1), recover(), a_capture(2)]
    assert sorted(batch, key=place) == [batch[3], batch[5], batch[1], batch[4], batch[0], batch[2]]


def test_a_capture_that_needs_no_extension_changes_the_reservation_only(ledger: Ledger) -> None:
    ledger.decide(a_reserve())
    books = ledger._books
    books.mark_stored()
    ledger.decide(a_capture(50))
    assert list(books.reservations.changed) == ["res-1"]
    others = (books.wallets, books.grants, books.authorizations, books.charges)
    assert not any(table.changed or table.added for table in others)
    assert books.transfers == []


def test_recovery_charges_what_was_captured_and_leaves_the_survivor_alone(ledger: Ledger) -> None:
    ledger.decide(a_reserve())
    ledger.decide(a_capture(40, delivered_microcredits=9))
    alive = ledger.decide(recover(survivor=OWNER))
    assert isinstance(alive, Reserved)
    settled = ledger.decide(recover())
    assert isinstance(settled, Settled)
    assert settled.charge is not None
    assert (settled.charge.charged_microcredits, settled.charge.close_cause) == (40, CloseCause.CRASH)
    assert settled.charge.attempts == ()
    assert ledger.decide(recover()) == settled


def test_recovery_releases_what_captured_nothing(ledger: Ledger) -> None:
    ledger.decide(a_reserve(capture_microcredits=0))
    assert ledger.decide(recover()) == Settled(charge=None, spendable_microcredits=1_000)


def test_each_part_of_a_charge_is_a_transfer_from_its_grant_to_revenue(ledger: Ledger) -> None:
    ledger.decide(a_grant("first", 30, priority=1))
    ledger.decide(a_reserve())
    ledger.decide(a_settle(50, captured=50))
    charged = [row for row in ledger._books.transfers if row.kind is TransferKind.CHARGE]
    assert [(row.debit_account, row.amount_microcredits) for row in charged] == [
        ("grant:first", 30),
        ("grant:grant-1", 20),
    ]
    assert {row.credit_account for row in charged} == {REVENUE_ACCOUNT}


@pytest.mark.parametrize(
    ("wallet", "consent", "refusal"),
    [
        ({"state": WalletState.SUSPENDED}, {}, CloseCause.CREDIT_EXHAUSTED),
        ({}, {"revoke_time_us": NOW_US}, CloseCause.CAP_REACHED),
    ],
)
def test_a_suspended_wallet_and_a_revoked_consent_extend_nothing_but_keep_what_is_reserved(
    ledger: Ledger, wallet: dict[str, Any], consent: dict[str, Any], refusal: CloseCause
) -> None:
    ledger.decide(a_reserve())
    books = ledger._books
    books.wallets.change("alice", replace(books.wallets.rows["alice"], **wallet))
    books.authorizations.change("auth-1", replace(books.authorizations.rows["auth-1"], **consent))
    captured = ledger.decide(a_capture(100, wanted_microcredits=200))
    assert captured == Captured(
        status=CaptureStatus.OPEN, captured_microcredits=100, reserved_microcredits=100, refusal=refusal
    )


AMOUNTS = st.integers(-1, 150)
NAMES = st.sampled_from([f"res-{number}" for number in range(6)])
CORRECTIONS = st.sampled_from([f"correction-{number}" for number in range(8)])


class Conservation(RuleBasedStateMachine):
    """Whatever is asked, L1, L2 and L3 hold, and a refusal leaves everything as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.ledger = Ledger(self.books)
        self.now_us = NOW_US

    def decide(self, operation: Operation) -> None:
        before = copy.deepcopy(self.books.__dict__)
        try:
            first = self.ledger.decide(operation)
        except MetergateError:
            assert _contents(self.books.__dict__) == _contents(before), "a refusal changes nothing"
            return
        if isinstance(first, Reserved | Settled | Correction):  # asked again, the same answer (L4)
            before = copy.deepcopy(self.books.__dict__)
            assert self.ledger.decide(operation) == first
            assert _contents(self.books.__dict__) == _contents(before)

    @initialize(cap=st.none() | st.integers(0, 300))
    def open(self, cap: int | None) -> None:
        rule: dict[str, Any] = {"rollover_microcredits_max": 40, "rollover_seconds": 3 * DAY_SECONDS}
        june = a_grant("june", 200, expire_time_us=NOW_US + DAY_US, **rule)
        for operation in (a_wallet(), a_consent(cap_microcredits=cap), a_consent("auth-2"), june):
            self.ledger.decide(operation)

    @rule(
        name=st.sampled_from(["a", "b", "c", "d"]),
        amount=st.integers(0, 120),
        priority=st.integers(0, 1),
        days=st.none() | st.integers(1, 3),
        rollover=st.sampled_from([0, 0, 30, 90]),
    )
    def grant(self, name: str, amount: int, priority: int, days: int | None, rollover: int) -> None:
        expire = None if days is None else NOW_US + days * DAY_US
        rule = {"rollover_microcredits_max": rollover, "rollover_seconds": DAY_SECONDS if rollover else 0}
        values: dict[str, Any] = {"priority": priority, "create_time_us": self.now_us} | rule
        self.decide(a_grant(name, amount, expire_time_us=expire, **values))

    @rule(correction=CORRECTIONS, name=NAMES, amount=AMOUNTS)
    def refund(self, correction: str, name: str, amount: int) -> None:
        self.decide(a_refund(amount, f"charge-of-{name}", correction, now_us=self.now_us))

    @rule(correction=CORRECTIONS, amount=st.integers(-90, 90), days=st.none() | st.integers(1, 2))
    def adjust(self, correction: str, amount: int, days: int | None) -> None:
        seconds = days if days is None or amount < 0 else days * DAY_SECONDS
        self.decide(an_adjustment(amount, correction, grant_seconds=seconds, now_us=self.now_us))

    @rule(correction=CORRECTIONS, name=st.sampled_from(["a", "june", "rollover:june"]))
    def reverse(self, correction: str, name: str) -> None:
        self.decide(a_reversal(name, correction, now_us=self.now_us))

    @rule(
        correction=CORRECTIONS, state=st.sampled_from([WalletState.ACTIVE, WalletState.ACTIVE, WalletState.SUSPENDED])
    )
    def set_state(self, correction: str, state: WalletState) -> None:
        self.decide(a_state_change(correction, state, now_us=self.now_us))

    @rule()
    def expire(self) -> None:
        self.decide(Expire(subscriber_id="alice", now_us=self.now_us))
        for grant in self.books.grants.rows.values():
            is_over = grant.expire_time_us is not None and grant.expire_time_us <= self.now_us
            assert grant.remaining_microcredits == 0 or not is_over

    @rule(name=NAMES, authorization=st.sampled_from(["auth-1", "auth-2"]), wanted=AMOUNTS, limit=AMOUNTS)
    def reserve(self, name: str, authorization: str, wanted: int, limit: int) -> None:
        values = {"wanted_microcredits": wanted, "limit_microcredits": limit, "now_us": self.now_us}
        self.decide(a_reserve(name, authorization_id=authorization, **values))

    @rule(name=NAMES, cumulative=AMOUNTS, wanted=AMOUNTS, delivered=AMOUNTS)
    def capture(self, name: str, cumulative: int, wanted: int, delivered: int) -> None:
        values = {"wanted_microcredits": wanted, "delivered_microcredits": delivered, "now_us": self.now_us}
        self.decide(a_capture(cumulative, name, **values))

    @rule(name=NAMES, charged=st.none() | AMOUNTS, captured=AMOUNTS, owner=st.sampled_from([OWNER, OWNER, HEIR]))
    def settle(self, name: str, charged: int | None, captured: int, owner: Owner) -> None:
        self.decide(a_settle(charged, name, captured=captured, owner=owner, now_us=self.now_us))

    @rule(name=NAMES)
    def recover(self, name: str) -> None:
        self.decide(recover(name))

    @rule(days=st.sampled_from([-1, 1, 1, 2]))
    def move_clock(self, days: int) -> None:
        self.now_us += days * DAY_US

    @invariant()
    def every_grant_is_conserved_and_nothing_is_negative(self) -> None:
        open_rows = [row for row in self.books.reservations.rows.values() if row.state is ReservationState.ACTIVE]
        for grant in self.books.grants.rows.values():
            account = grant_account(grant.grant_id)
            came = sum(row.amount_microcredits for row in self.books.transfers if row.credit_account == account)
            left = sum(row.amount_microcredits for row in self.books.transfers if row.debit_account == account)
            allocated = sum(
                part.amount_microcredits
                for row in open_rows
                for part in row.allocations
                if part.grant_id == grant.grant_id
            )
            assert 0 <= grant.remaining_microcredits <= grant.amount_microcredits
            assert came - left == grant.remaining_microcredits + allocated
            assert grant.reverse_time_us is None or grant.remaining_microcredits == 0

    @invariant()
    def what_rolls_over_is_bounded_and_comes_from_its_grant(self) -> None:
        for grant in self.books.grants.rows.values():
            rolled = [row for row in self.books.transfers if row.kind is TransferKind.ROLLOVER]
            amount = sum(row.amount_microcredits for row in rolled if row.grant_id == grant.grant_id)
            rollover = self.books.grants.get(("alice", f"rollover:{grant.grant_id}"))
            assert amount <= grant.rollover_microcredits_max
            assert amount == (0 if rollover is None else rollover.amount_microcredits)
            assert rollover is None or rollover.rollover_microcredits_max == 0

    @invariant()
    def no_charge_is_refunded_beyond_what_it_was(self) -> None:
        for charge in self.books.charges.rows.values():
            transfers = [row for row in self.books.transfers if row.charge_id == charge.charge_id]
            back = sum(row.amount_microcredits for row in transfers if row.kind is TransferKind.REFUND)
            assert back == self.books.refunded_microcredits(charge.charge_id) <= charge.charged_microcredits

    @invariant()
    def what_a_reversal_took_and_what_was_spent_or_lost_are_its_grant(self) -> None:
        lost: Counter[str] = Counter()
        for row in self.books.transfers:
            if row.kind in (TransferKind.EXPIRY, TransferKind.ADJUSTMENT) and row.debit_account.startswith("grant:"):
                lost[origin_of(row.grant_id)] += row.amount_microcredits
        reversals = {row.grant_id: row for row in self.books.corrections.rows.values() if row.grant_id}
        for correction in reversals.values():
            grant: Grant = self.books.grants.rows[("alice", correction.grant_id)]
            assert grant.source is GrantSource.TOP_UP
            taken, missing = correction.amount_microcredits, correction.shortfall_microcredits
            assert missing >= 0
            assert taken + missing + lost[grant.grant_id] == grant.amount_microcredits
            carriers = [row for row in self.books.grants_of("alice") if origin_of(row.grant_id) == grant.grant_id]
            assert {row.reverse_time_us is not None for row in carriers} == {True}

    @invariant()
    def every_reservation_is_covered(self) -> None:
        for row in self.books.reservations.rows.values():
            assert 0 <= row.delivered_microcredits <= row.captured_microcredits <= row.reserved_microcredits
            charge = self.books.charge_of_reservation(row.reservation_id)
            assert (charge is not None) == (row.state is ReservationState.SETTLED)
            if row.state is ReservationState.ACTIVE:
                assert sum(part.amount_microcredits for part in row.allocations) == row.reserved_microcredits

    @invariant()
    def counters_and_sequences_agree(self) -> None:
        assert [row.sequence for row in self.books.transfers] == list(range(1, len(self.books.transfers) + 1))
        for row in self.books.authorizations.rows.values():
            name = row.authorization_id
            mine = [item for item in self.books.reservations.rows.values() if item.authorization_id == name]
            open_sum = sum(r.reserved_microcredits for r in mine if r.state is ReservationState.ACTIVE)
            charges = [item for item in self.books.charges.rows.values() if item.authorization_id == name]
            assert row.reserved_microcredits == open_sum
            refunded = sum(self.books.refunded_microcredits(item.charge_id) for item in charges)
            assert row.charged_microcredits == sum(item.charged_microcredits for item in charges) - refunded
            spent = row.reserved_microcredits + row.charged_microcredits
            assert row.cap_microcredits is None or spent <= row.cap_microcredits


def _contents(books: dict[str, Any]) -> dict[str, Any]:
    """Books' attributes as plain values that compare."""
    return {name: getattr(value, "rows", value) for name, value in books.items()}


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)

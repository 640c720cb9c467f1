"""The audit of a stored ledger names whatever another program changed in it."""

import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from ledger_rows import (
    CARD,
    DAY_US,
    NOW_US,
    a_consent,
    a_grant,
    a_refund,
    a_reversal,
    a_settle,
    a_state_change,
    a_wallet,
    an_adjustment,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.audit import DifferenceKind
from metergate.core.rows import WalletState
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """A ledger with grants spent, expired, rolled over, reversed; charges, an open reservation; every correction."""
    path = tmp_path / "ledger.db"
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant("expired", 50, expire_time_us=NOW_US - 1), a_grant("grant-1", 1_000))
    await store.add_grant(a_grant("later", 70, expire_time_us=NOW_US + DAY_US, effective_time_us=NOW_US + 5))
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob"))
    await store.add_grant(a_grant("grant-1", 10, "bob"))
    for name in ("one", "two", "open", "released"):
        await reserve(store, name)
    await store.settle(a_settle(None, "released", owner=store.owner))
    await store.settle(a_settle(9, "one", owner=store.owner))
    await store.settle(a_settle(30, "two", owner=store.owner, captured=40))
    await correct(store)
    assert await differences(store) == []
    yield path
    await store.close()


async def correct(store: SqliteLedgerStore) -> None:
    """Carol has one of everything that is not a request's own: the other two have a few rows that tests count on."""
    june: dict[str, Any] = {"rollover_microcredits_max": 30, "rollover_seconds": 60, "expire_time_us": NOW_US + 1}
    await store.add_subscriber(a_wallet("carol"))
    await store.add_authorization(a_consent("auth-carol", "carol"))
    await store.add_grant(a_grant("june", 100, "carol", priority=1, **june))
    await store.add_grant(a_grant("paid", 100, "carol", priority=2))
    await store.add_grant(a_grant("july", 100, "carol", priority=20, **(june | {"expire_time_us": NOW_US + DAY_US})))
    hers: dict[str, Any] = {"subscriber_id": "carol", "now_us": NOW_US + 2}
    await reserve(store, "hers", authorization_id="auth-carol", subscriber_id="carol", wanted_microcredits=150)
    await store.settle(a_settle(65, "hers", owner=store.owner, captured=65, **hers))
    await store.refund(a_refund(10, "charge-of-hers", "refund-of-june", **hers))
    await reserve(store, "more", authorization_id="auth-carol", **hers)
    await store.settle(a_settle(40, "more", owner=store.owner, captured=40, **hers))
    await store.refund(a_refund(5, "charge-of-more", "refund-of-more", **hers))
    await store.adjust(an_adjustment(20, "gift", **hers))
    await store.adjust(an_adjustment(-7, "taken", **hers))
    await reserve(store, "aside", authorization_id="auth-carol", wanted_microcredits=10, **hers)
    await store.reverse(a_reversal("paid", **hers))
    await store.settle(a_settle(None, "aside", owner=store.owner, **hers))
    await store.set_wallet_state(a_state_change("go on", WalletState.ACTIVE, **hers))


TAMPERINGS = [
    ("UPDATE wallets SET sequence = sequence + 1 WHERE subscriber_id = 'alice'", DifferenceKind.SEQUENCE),
    ("UPDATE grants SET unspent_microcredits = 899 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("UPDATE grants SET unspent_microcredits = -1 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("UPDATE grants SET amount_microcredits = 1001 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("DELETE FROM grants WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE authorizations SET charged_microcredits = 40", DifferenceKind.AUTHORIZATION),
    ("DELETE FROM authorizations WHERE authorization_id = 'auth-1'", DifferenceKind.AUTHORIZATION),
    (
        "UPDATE reservations SET reserved_microcredits = 101 WHERE reservation_id = 'open'",
        DifferenceKind.RESERVATION,
    ),
    ("UPDATE reservations SET captured_microcredits = 101 WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET delivered_microcredits = 10 WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET allocations = '[[\"grant-1\",99]]' WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("DELETE FROM reservations WHERE reservation_id = 'open'", DifferenceKind.RESERVATION),
    (
        "UPDATE reservations SET reserved_microcredits = 99, allocations = '[[\"grant-1\",99]]' WHERE state = 'ACTIVE'",
        DifferenceKind.RESERVATION,
    ),
    ("UPDATE reservations SET allocations = '[[\"none\",100]]' WHERE state = 'ACTIVE'", DifferenceKind.GRANT),
    ("UPDATE reservations SET rate_card_id = 'none' WHERE state = 'ACTIVE'", DifferenceKind.PRICE),
    ("UPDATE reservations SET captured_microcredits = 10 WHERE reservation_id = 'one'", DifferenceKind.CHARGE),
    ("DELETE FROM reservations WHERE reservation_id = 'one'", DifferenceKind.CHARGE),
    (
        "UPDATE reservations SET state = 'RELEASED' WHERE reservation_id = 'one'",
        DifferenceKind.CHARGE,
    ),
    (
        "UPDATE reservations SET state = 'SETTLED', close_cause = 'CRASH', close_time_us = 0, allocations = '[]' "
        "WHERE reservation_id = 'open'",
        DifferenceKind.RESERVATION,
    ),
    ("DELETE FROM charges WHERE charge_id = 'charge-of-one'", DifferenceKind.RESERVATION),
    ("UPDATE charges SET charged_microcredits = 8 WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE charges SET charged_microcredits = 41 WHERE charge_id = 'charge-of-two'", DifferenceKind.CHARGE),
    ("UPDATE charges SET usage_counted = '[[\"PROMPT\",31]]' WHERE charge_id = 'charge-of-two'", DifferenceKind.PRICE),
    ("UPDATE charges SET rate_card_id = 'none'", DifferenceKind.PRICE),
    ("UPDATE charges SET model_id = 'other'", DifferenceKind.PRICE),
    ("UPDATE charges SET subscriber_id = 'bob' WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE charges SET authorization_id = 'auth-bob' WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE charges SET delivered_microcredits = 10 WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE account_days SET credited_rest = credited_rest + 1 WHERE account = 'revenue'", DifferenceKind.ACCOUNT),
    ("DELETE FROM account_days WHERE account = 'breakage'", DifferenceKind.ACCOUNT),
    ("INSERT INTO account_days VALUES ('nobody', 1, 0, 1, 0, 0)", DifferenceKind.ACCOUNT),
    ("DELETE FROM transfers WHERE subscriber_id = 'alice' AND sequence = 2", DifferenceKind.SEQUENCE),
    ("DELETE FROM transfers WHERE subscriber_id = 'bob'", DifferenceKind.SEQUENCE),
    ("UPDATE transfers SET amount_microcredits = 8 WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE transfers SET amount_microcredits = -1 WHERE kind = 'EXPIRY'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET credit_account = 'nobody' WHERE kind = 'CHARGE'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET kind = 'GRANT' WHERE kind = 'EXPIRY'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET charge_id = 'none' WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    ("UPDATE transfers SET grant_id = 'later' WHERE charge_id = 'charge-of-one'", DifferenceKind.GRANT),
    ("UPDATE rate_cards SET prices = replace(prices, '1000000', '1000001')", DifferenceKind.PRICE),
    ("UPDATE rate_cards SET prices = '[]'", DifferenceKind.PRICE),
    ("DELETE FROM rate_cards", DifferenceKind.PRICE),
    ("DELETE FROM wallets WHERE subscriber_id = 'bob'", DifferenceKind.SEQUENCE),
    ("UPDATE transfers SET debit_account = 'goodwill' WHERE kind = 'GRANT'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET expire_time_us = NULL WHERE grant_id = 'expired'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET expire_time_us = expire_time_us + 2 WHERE grant_id = 'expired'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET create_time_us = 1 WHERE kind = 'EXPIRY'", DifferenceKind.TRANSFER),
    (
        "UPDATE authorizations SET cap_microcredits = 138 WHERE subscriber_id = 'alice'",
        DifferenceKind.AUTHORIZATION,
    ),
    ("UPDATE reservations SET captured_usage = '[]' WHERE state = 'ACTIVE'", DifferenceKind.PRICE),
    ("UPDATE reservations SET model_id = 'other' WHERE state = 'ACTIVE'", DifferenceKind.PRICE),
    ("UPDATE reservations SET request_id = 'request-of-one' WHERE state = 'ACTIVE'", DifferenceKind.CHARGE),
    ("UPDATE charges SET provider_id = 'other'", DifferenceKind.CHARGE),
    ("UPDATE charges SET app_id = 'other'", DifferenceKind.CHARGE),
    ("UPDATE charges SET channel = 'CLOUD_PC'", DifferenceKind.CHARGE),
    ("UPDATE charges SET counting_source = 'BACKEND'", DifferenceKind.CHARGE),
    ("UPDATE charges SET content_hash = x'00'", DifferenceKind.CHARGE),
    ("UPDATE charges SET close_cause = 'BACKEND_ERROR'", DifferenceKind.CHARGE),
    ("UPDATE charges SET settle_time_us = 1", DifferenceKind.CHARGE),
    ("UPDATE charges SET allocations = '[]' WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    (
        "UPDATE charges SET allocations = '[[\"later\",9]]' WHERE charge_id = 'charge-of-one'",
        DifferenceKind.CHARGE,
    ),
    ("UPDATE charges SET usage_mismatch = 1 WHERE charge_id = 'charge-of-one'", DifferenceKind.CHARGE),
    (
        "UPDATE charges SET usage_mismatch = 1, usage_reported = usage_counted WHERE charge_id = 'charge-of-one'",
        DifferenceKind.CHARGE,
    ),
    (
        "UPDATE charges SET usage_mismatch = 1, close_cause = 'CLIENT_CANCELLED', "
        "usage_reported = '[[\"PROMPT\",2000]]' WHERE charge_id = 'charge-of-one'",
        DifferenceKind.CHARGE,
    ),
    (
        "UPDATE charges SET usage_reported = '[[\"PROMPT\",2000]]' WHERE charge_id = 'charge-of-one'",
        DifferenceKind.CHARGE,
    ),
    (
        "UPDATE reservations SET allocations = '[[\"grant-1\",9]]' WHERE reservation_id = 'one'",
        DifferenceKind.RESERVATION,
    ),
    ("UPDATE grants SET expire_time_us = 5 + effective_time_us WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET expire_time_us = NULL WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET grant_expire_time_us = 5 WHERE sequence = 4", DifferenceKind.TRANSFER),
    # What rolled over.
    ("UPDATE grants SET rollover_microcredits_max = 29 WHERE grant_id = 'june'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET rollover_microcredits_max = 31 WHERE grant_id = 'june'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET rollover_seconds = 61 WHERE grant_id = 'june'", DifferenceKind.TRANSFER),
    ("DELETE FROM grants WHERE grant_id = 'rollover:june'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET amount_microcredits = 31 WHERE grant_id = 'rollover:june'", DifferenceKind.GRANT),
    ("UPDATE grants SET expire_time_us = NULL WHERE grant_id = 'rollover:june'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET create_time_us = 1 WHERE kind = 'ROLLOVER'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET credit_account = 'breakage' WHERE kind = 'ROLLOVER'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET kind = 'EXPIRY', credit_account = 'breakage' WHERE kind = 'ROLLOVER'", DifferenceKind.GRANT),
    # What a grant was agreed to be, before it makes a difference.
    (
        "UPDATE grants SET rollover_microcredits_max = 30, rollover_seconds = 60 WHERE grant_id = 'later'",
        DifferenceKind.TRANSFER,
    ),
    ("UPDATE grants SET rollover_microcredits_max = 31 WHERE grant_id = 'july'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET rollover_seconds = 61 WHERE grant_id = 'july'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET expire_time_us = expire_time_us + 1 WHERE grant_id = 'july'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET priority = 1 WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET effective_time_us = 0 WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET source = 'PLAN_CYCLE' WHERE grant_id = 'grant-1'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET source = 'PLAN_CYCLE' WHERE grant_id LIKE 'refund%'", DifferenceKind.TRANSFER),
    ("UPDATE grants SET priority = 1 WHERE grant_id LIKE 'adjustment:%'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET grant_terms = NULL WHERE kind = 'GRANT'", DifferenceKind.TRANSFER),
    (
        "UPDATE transfers SET grant_terms = '[\"GIFT\",1,1,0,0]' WHERE kind = 'CHARGE'",
        DifferenceKind.TRANSFER,
    ),
    ("UPDATE transfers SET grant_terms = '[]' WHERE kind = 'GRANT'", DifferenceKind.ROW),
    # Reservations that were released, and owners.
    ("UPDATE reservations SET delivered_microcredits = 9 WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET captured_microcredits = 101 WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET limit_microcredits = 5 WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET close_cause = NULL WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET close_time_us = NULL WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    (
        "UPDATE reservations SET allocations = '[[\"grant-1\",100]]' WHERE state = 'RELEASED'",
        DifferenceKind.RESERVATION,
    ),
    ("UPDATE reservations SET state = 'SETTLED' WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    ("DELETE FROM owners", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET owner_epoch = 9 WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET owner_id = 'nobody' WHERE state = 'RELEASED'", DifferenceKind.RESERVATION),
    # Refunds.
    ("DELETE FROM corrections WHERE correction_id = 'refund-of-june'", DifferenceKind.CORRECTION),
    ("DELETE FROM corrections WHERE kind = 'REFUND'", DifferenceKind.AUTHORIZATION),
    (
        "UPDATE corrections SET amount_microcredits = 71 WHERE correction_id = 'refund-of-june'",
        DifferenceKind.CHARGE,
    ),
    ("UPDATE corrections SET charge_id = 'none' WHERE correction_id = 'refund-of-june'", DifferenceKind.CHARGE),
    ("UPDATE corrections SET charge_id = 'charge-of-one' WHERE kind = 'REFUND'", DifferenceKind.CHARGE),
    ("UPDATE corrections SET charge_id = '' WHERE correction_id = 'refund-of-june'", DifferenceKind.CORRECTION),
    ("UPDATE transfers SET correction_id = '' WHERE kind = 'REFUND'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET correction_id = 'gift' WHERE kind = 'REFUND'", DifferenceKind.CORRECTION),
    ("UPDATE transfers SET charge_id = '' WHERE kind = 'REFUND'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET debit_account = 'goodwill' WHERE kind = 'REFUND'", DifferenceKind.TRANSFER),
    (
        "UPDATE transfers SET grant_id = 'june', credit_account = 'grant:june' WHERE credit_account LIKE '%refund-of%'",
        DifferenceKind.TRANSFER,
    ),
    (
        "UPDATE charges SET charged_microcredits = charged_microcredits - 36 WHERE charge_id = 'charge-of-more'",
        DifferenceKind.CHARGE,
    ),
    # Adjustments.
    ("UPDATE corrections SET amount_microcredits = 7 WHERE correction_id = 'taken'", DifferenceKind.CORRECTION),
    ("DELETE FROM corrections WHERE correction_id = 'gift'", DifferenceKind.CORRECTION),
    ("UPDATE transfers SET credit_account = 'revenue' WHERE correction_id = 'taken'", DifferenceKind.TRANSFER),
    ("UPDATE transfers SET kind = 'GRANT' WHERE correction_id = 'gift'", DifferenceKind.TRANSFER),
    # Reversals and stopped wallets.
    ("UPDATE grants SET reverse_time_us = NULL WHERE grant_id = 'paid'", DifferenceKind.GRANT),
    ("UPDATE grants SET reverse_time_us = 5 WHERE grant_id = 'paid'", DifferenceKind.CORRECTION),
    ("UPDATE grants SET reverse_time_us = 5 WHERE grant_id = 'later'", DifferenceKind.GRANT),
    ("UPDATE grants SET unspent_microcredits = 1 WHERE grant_id = 'paid'", DifferenceKind.GRANT),
    ("UPDATE corrections SET shortfall_microcredits = 1 WHERE kind = 'REVERSAL'", DifferenceKind.CORRECTION),
    ("UPDATE corrections SET shortfall_microcredits = 11 WHERE kind = 'REVERSAL'", DifferenceKind.CORRECTION),
    ("UPDATE corrections SET grant_id = 'june' WHERE kind = 'REVERSAL'", DifferenceKind.CORRECTION),
    ("DELETE FROM corrections WHERE kind = 'REVERSAL'", DifferenceKind.GRANT),
    ("UPDATE transfers SET credit_account = 'breakage' WHERE kind = 'REVERSAL'", DifferenceKind.TRANSFER),
    ("UPDATE wallets SET state = 'SUSPENDED' WHERE subscriber_id = 'carol'", DifferenceKind.WALLET),
    ("DELETE FROM corrections WHERE kind = 'RESUMPTION'", DifferenceKind.WALLET),
    ("UPDATE corrections SET subscriber_id = '' WHERE correction_id = 'gift'", DifferenceKind.WALLET),
    ("UPDATE corrections SET kind = 'FAVOUR' WHERE correction_id = 'gift'", DifferenceKind.ROW),
    ("UPDATE charges SET charge_number = -charge_number", DifferenceKind.CHARGE),
    ("UPDATE wallets SET subscriber_id = '' WHERE subscriber_id = 'bob'", DifferenceKind.WALLET),
    ("UPDATE transfers SET subscriber_id = '' WHERE subscriber_id = 'bob'", DifferenceKind.WALLET),
    ("UPDATE wallets SET state = 'SUSPENDED' WHERE subscriber_id = 'bob'", DifferenceKind.WALLET),  # without any
    ("UPDATE wallets SET state = 'CLOSED'", DifferenceKind.ROW),
    ("UPDATE grants SET source = 'LOTTERY'", DifferenceKind.ROW),
    ("UPDATE grants SET is_spent = 1 WHERE grant_id = 'grant-1' AND subscriber_id = 'bob'", DifferenceKind.ROW),
    ("UPDATE authorizations SET allowed_models = '{}'", DifferenceKind.ROW),
    ("UPDATE reservations SET allocations = 'x' WHERE state = 'ACTIVE'", DifferenceKind.ROW),
    ("UPDATE charges SET usage_counted = '[[\"GOLD\",1]]'", DifferenceKind.ROW),
    ("UPDATE transfers SET kind = 'X' WHERE sequence = 1", DifferenceKind.ROW),
    ('UPDATE rate_cards SET prices = \'[["PROMPT","9"]]\'', DifferenceKind.ROW),
]


async def test_a_row_that_cannot_be_read_is_named_and_the_rest_is_still_audited(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as tamperer:
        tamperer.execute("UPDATE charges SET attempts = 'x' WHERE charge_id = 'charge-of-one'")
        tamperer.execute("UPDATE grants SET unspent_microcredits = 9 WHERE subscriber_id = 'bob'")
    reader = await SqliteLedgerReader.open_read_only(path)
    found = await differences(reader)
    await reader.close()
    assert any("Row charges/charge-of-one of subscriber alice cannot be read" in one.sentence for one in found)
    assert (DifferenceKind.GRANT, "bob") in {(one.kind, one.subscriber_id) for one in found}


async def test_a_reversal_that_an_earlier_version_recorded_with_what_was_lost_is_no_difference(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as earlier:
        earlier.execute("UPDATE corrections SET shortfall_microcredits = 12 WHERE kind = 'REVERSAL'")
    reader = await SqliteLedgerReader.open_read_only(path)
    assert await differences(reader) == []
    await reader.close()


async def test_a_rate_card_that_is_recorded_during_the_audit_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant())
    reader = await SqliteLedgerReader.open_read_only(path)
    await store.add_rate_cards([dataclasses.replace(CARD, rate_card_id="card-2", effective_time_us=5)])
    await reserve(store, "one", rate_card_id="card-2")
    await store.settle(a_settle(9, "one", owner=store.owner))
    assert await differences(reader) == []
    await reader.close()
    await store.close()


@pytest.mark.parametrize(("sql", "kind"), TAMPERINGS, ids=[sql[:60] for sql, _ in TAMPERINGS])
async def test_the_audit_names_what_was_changed(path: Path, sql: str, kind: DifferenceKind) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as tamperer:
        tamperer.execute("PRAGMA ignore_check_constraints = ON")
        assert tamperer.execute(sql).rowcount > 0

    reader = await SqliteLedgerReader.open_read_only(path)
    found = await differences(reader)
    await reader.close()
    assert kind in {difference.kind for difference in found}, found
    assert all(difference.sentence.endswith(".") for difference in found)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM charges WHERE charge_id = 'charge-of-one'",
        "UPDATE reservations SET allocations = '[[\"grant-1\",100]]' WHERE state = 'RELEASED'",
        "UPDATE reservations SET owner_id = 'nobody' WHERE state = 'RELEASED'",
    ],
)
async def test_a_look_at_some_subscribers_looks_at_closed_reservations_of_any_too(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as tamperer:
        tamperer.execute("PRAGMA foreign_keys = OFF")
        assert tamperer.execute(sql).rowcount > 0
    reader = await SqliteLedgerReader.open_read_only(path)
    found = [
        ledger.wallet.subscriber_id async for ledger in reader.audit(after="~") if ledger.wrong_closed_reservations
    ]
    assert "alice" in found
    await reader.close()

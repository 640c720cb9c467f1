"""The audit of a stored ledger names whatever another program changed in it."""

import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import CARD, DAY_US, NOW_US, a_consent, a_grant, a_settle, a_wallet, differences, open_wallet, reserve

from metergate.core.audit import DifferenceKind
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """A ledger with two grants, one of them expired, two charges, one open reservation, and a second subscriber."""
    path = tmp_path / "ledger.db"
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant("expired", 50, expire_time_us=NOW_US - 1), a_grant("grant-1", 1_000))
    await store.add_grant(a_grant("later", 70, expire_time_us=NOW_US + DAY_US, effective_time_us=NOW_US + 5))
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob"))
    await store.add_grant(a_grant("grant-1", 10, "bob"))
    for name in ("one", "two", "open"):
        await reserve(store, name)
    await store.settle(a_settle(9, "one", owner=store.owner))
    await store.settle(a_settle(30, "two", owner=store.owner, captured=40))
    assert await differences(store) == []
    yield path
    await store.close()


TAMPERINGS = [
    ("UPDATE wallets SET sequence = sequence + 1 WHERE subscriber_id = 'alice'", DifferenceKind.SEQUENCE),
    ("UPDATE grants SET remaining_microcredits = 899 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("UPDATE grants SET remaining_microcredits = -1 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("UPDATE grants SET amount_microcredits = 1001 WHERE grant_id = 'grant-1'", DifferenceKind.GRANT),
    ("DELETE FROM grants WHERE grant_id = 'later'", DifferenceKind.TRANSFER),
    ("UPDATE authorizations SET charged_microcredits = 40", DifferenceKind.AUTHORIZATION),
    ("UPDATE authorizations SET reserved_microcredits = 0", DifferenceKind.AUTHORIZATION),
    ("DELETE FROM authorizations WHERE authorization_id = 'auth-1'", DifferenceKind.AUTHORIZATION),
    (
        "UPDATE reservations SET reserved_microcredits = 101 WHERE reservation_id = 'open'",
        DifferenceKind.RESERVATION,
    ),
    ("UPDATE reservations SET captured_microcredits = 101 WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET delivered_microcredits = 10 WHERE state = 'ACTIVE'", DifferenceKind.RESERVATION),
    ("UPDATE reservations SET allocations = '[[\"grant-1\",99]]' WHERE state = 'ACTIVE'", DifferenceKind.GRANT),
    ("UPDATE reservations SET allocations = '[[\"none\",100]]' WHERE state = 'ACTIVE'", DifferenceKind.GRANT),
    ("UPDATE reservations SET rate_card_id = 'none' WHERE state = 'ACTIVE'", DifferenceKind.PRICE),
    ("UPDATE reservations SET captured_microcredits = 10 WHERE reservation_id = 'one'", DifferenceKind.CHARGE),
    ("DELETE FROM reservations WHERE reservation_id = 'open'", DifferenceKind.GRANT),
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
    ("UPDATE charges SET charge_number = -charge_number", DifferenceKind.CHARGE),
    ("UPDATE wallets SET subscriber_id = '' WHERE subscriber_id = 'bob'", DifferenceKind.WALLET),
    ("UPDATE transfers SET subscriber_id = '' WHERE subscriber_id = 'bob'", DifferenceKind.WALLET),
    ("UPDATE wallets SET state = 'CLOSED'", DifferenceKind.ROW),
    ("UPDATE grants SET source = 'LOTTERY'", DifferenceKind.ROW),
    ("UPDATE authorizations SET allowed_models = '{}'", DifferenceKind.ROW),
    ("UPDATE reservations SET allocations = 'x' WHERE state = 'ACTIVE'", DifferenceKind.ROW),
    ("UPDATE charges SET usage_counted = '[[\"GOLD\",1]]'", DifferenceKind.ROW),
    ("UPDATE transfers SET kind = 'X' WHERE sequence = 1", DifferenceKind.ROW),
    ('UPDATE rate_cards SET prices = \'[["PROMPT","9"]]\'', DifferenceKind.ROW),
]


async def test_a_row_that_cannot_be_read_is_named_and_the_rest_is_still_audited(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as tamperer:
        tamperer.execute("UPDATE charges SET attempts = 'x' WHERE charge_id = 'charge-of-one'")
        tamperer.execute("UPDATE grants SET remaining_microcredits = 9 WHERE subscriber_id = 'bob'")
    reader = await SqliteLedgerReader.open_read_only(path)
    found = await differences(reader)
    await reader.close()
    assert any("Row charges/charge-of-one of subscriber alice cannot be read" in one.sentence for one in found)
    assert (DifferenceKind.GRANT, "bob") in {(one.kind, one.subscriber_id) for one in found}


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

"""A ledger of any size, written set-based: the rows that a gateway would have left, and `verify` accepts."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

# What each wallet was given, and what each of its charges cost: one microcredit a token.
GRANT_MICROCREDITS, CHARGE_MICROCREDITS = 1_000_000_000, 300

# Before the time of every measurement, so that what is measured has the newest ids, as with a gateway.
TIME_US = 1_700_000_000_000_000

# Built again, sorted, after the rows: many times faster than row by row.
_INDEXES = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"

_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {end})"

# Rows of one statement: so many are written between two reports of progress.
ROWS_AT_ONCE = 100_000

# Of a UUID of version 7: the time in milliseconds first, so that ids grow.
_ID = f"printf('%012x7%03x8%015x', {TIME_US // 1_000} + n / 1000, n % 1000, n)"

WALLETS = """
    INSERT INTO wallets (subscriber_id, state, sequence, create_time_us)
    SELECT printf('s%07d', n), 'ACTIVE', 1 + {each}, {time} FROM numbers
"""
GRANTS = """
    INSERT INTO grants (grant_id, subscriber_id, source, priority, amount_microcredits, unspent_microcredits,
        effective_time_us, expire_time_us, create_time_us)
    SELECT 'first', printf('s%07d', n), 'TOP_UP', 10, {grant}, {grant} - {each} * {price}, 0, NULL, {time} FROM numbers
"""
AUTHORIZATIONS = """
    INSERT INTO authorizations (authorization_id, subscriber_id, app_id, channel, cap_microcredits, allowed_models,
        charged_microcredits, create_time_us, revoke_time_us)
    SELECT printf('s%07d', n), printf('s%07d', n), 'bench', 'APP', NULL, '[]', {each} * {price}, {time}, NULL
    FROM numbers
"""
RATE_CARD = """
    INSERT INTO rate_cards (rate_card_id, model_id, effective_time_us, expire_time_us, prices)
    VALUES ('bench', 'bench', 0, NULL, '[["PROMPT",0],["COMPLETION",1000000]]')
"""
RESERVATIONS = """
    INSERT INTO reservations (reservation_id, subscriber_id, authorization_id, app_id, channel, request_id,
        content_hash, owner_id, owner_epoch, model_id, provider_id, counting_source, rate_card_id, limit_microcredits,
        state, close_cause, reserved_microcredits, captured_microcredits, captured_usage, delivered_microcredits,
        allocations, create_time_us, close_time_us)
    SELECT {id}, printf('s%07d', n % {wallets}), printf('s%07d', n % {wallets}), 'bench', 'APP', {id}, x'', 'bench', 1,
        'bench', 'bench', 'TOKENIZER', 'bench', 5000, 'SETTLED', 'FINISHED', 5000, {price}, '[["COMPLETION",{price}]]',
        0, '[]', {time}, {time}
    FROM numbers
"""
CHARGES = """
    INSERT INTO charges (charge_id, reservation_id, subscriber_id, authorization_id, app_id, channel, request_id,
        content_hash, model_id, provider_id, attempts, counting_source, usage_counted, usage_reported, usage_mismatch,
        rate_card_id, captured_microcredits, charged_microcredits,
        delivered_microcredits, allocations, finish_reason, close_cause, create_time_us,
        settle_time_us)
    SELECT {id}, {id}, printf('s%07d', n % {wallets}), printf('s%07d', n % {wallets}), 'bench', 'APP', {id}, x'',
        'bench', 'bench', '[["bench","",20,40]]', 'TOKENIZER', '[["COMPLETION",{price}]]', NULL, 0, 'bench', {price},
        {price}, {price}, '[["first",{price}]]', 'STOP', 'FINISHED', {time}, {time}
    FROM numbers
"""
GRANT_TRANSFERS = """
    INSERT INTO transfers (subscriber_id, sequence, kind, debit_account, credit_account, amount_microcredits, grant_id,
        charge_id, create_time_us, grant_terms)
    SELECT printf('s%07d', n), 1, 'GRANT', 'payments', 'grant:first', {grant}, 'first', '', {time},
        '["TOP_UP",10,0,0,0]'
    FROM numbers
"""
# In the order of their key: a wallet's charges lie a number of wallets apart.
CHARGE_TRANSFERS = """
    INSERT INTO transfers (subscriber_id, sequence, kind, debit_account, credit_account, amount_microcredits, grant_id,
        charge_id, create_time_us)
    SELECT subscriber_id, 1 + row_number() OVER (PARTITION BY subscriber_id ORDER BY charge_number), 'CHARGE',
        'grant:first', 'revenue', {price}, 'first', charge_id, {time}
    FROM charges
"""


# Whole credits and the rest: what each account's day was debited and credited.
ACCOUNT_DAYS = """
    INSERT INTO account_days (account, day, debited_credits, debited_rest, credited_credits, credited_rest)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def generate(ledger: Path, *, wallets: int, charges: int, made: Callable[[int], None]) -> None:
    """Fill a ledger that was just created; ``charges`` is a multiple of ``wallets``. ``made`` hears of charges."""
    assert charges % wallets == 0
    connection = sqlite3.connect(ledger, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA cache_size = -1000000")
    indexes: Sequence[tuple[str, str]] = connection.execute(_INDEXES).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    values = {
        "each": charges // wallets,
        "grant": GRANT_MICROCREDITS,
        "price": CHARGE_MICROCREDITS,
        "time": TIME_US,
        "wallets": wallets,
        "id": _ID,
    }
    connection.execute("BEGIN")
    connection.execute("INSERT OR IGNORE INTO owners VALUES ('bench', 1, {time}, {time})".format(**values))
    connection.execute(RATE_CARD)
    for count, sql in (
        (wallets, WALLETS),
        (wallets, GRANTS),
        (wallets, AUTHORIZATIONS),
        (charges, RESERVATIONS),
        (charges, CHARGES),
        (wallets, GRANT_TRANSFERS),
    ):
        insert, select = sql.format(**values).split("SELECT", 1)
        for first in range(0, count, ROWS_AT_ONCE):
            end = min(count, first + ROWS_AT_ONCE)
            connection.execute(f"{insert} {_NUMBERS.format(first=first, end=end)} SELECT {select}")
            if sql is CHARGES:
                made(end - first)
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute(CHARGE_TRANSFERS.format(**values))
    granted, charged = wallets * GRANT_MICROCREDITS, charges * CHARGE_MICROCREDITS
    day = TIME_US // 86_400_000_000
    moved = (("payments", granted, 0), ("grants", charged, granted), ("revenue", 0, charged))
    days = [(account, day, *divmod(debit, 1_000_000), *divmod(credit, 1_000_000)) for account, debit, credit in moved]
    connection.executemany(ACCOUNT_DAYS, days)
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()

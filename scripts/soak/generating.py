"""A ledger of any size, written set-based: the rows that a gateway would have left, and `verify` accepts.

The wallets' charges come one after the other in no order, each into the indexes that are there already: so the pages of
what is sorted by wallet are as full as in a ledger that has grown. Made sorted, every page would be full, and the next
charge of any wallet would split one.
"""

import random
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

# What each wallet was given, and what each of its charges cost: one microcredit a token.
GRANT_MICROCREDITS, CHARGE_MICROCREDITS = 1_000_000_000, 300

# Before the time of every measurement, so that what is measured has the newest ids, as with a gateway.
TIME_US = 1_700_000_000_000_000

# Which wallets are charged, and so how often each: the same in every ledger of the same size.
SEED = 4

# Rows of one statement: so many are written between two reports of progress.
ROWS_AT_ONCE = 100_000

# Charge n is of this wallet, and its transfer has this place in the wallet's sequence.
ARRIVALS = "CREATE TEMP TABLE arrivals (n INTEGER PRIMARY KEY, wallet INTEGER NOT NULL, sequence INTEGER NOT NULL)"
ARRIVE = "INSERT INTO arrivals (n, wallet, sequence) VALUES (?, ?, ?)"
TOTALS = "CREATE TEMP TABLE totals (n INTEGER PRIMARY KEY, charges INTEGER NOT NULL)"
ADD_TOTAL = "INSERT INTO totals (n, charges) VALUES (?, ?)"

# Of a UUID of version 7: the time in milliseconds first, so that ids grow.
_ID = f"printf('%012x7%03x8%015x', {TIME_US // 1_000} + n / 1000, n % 1000, n)"

WALLETS = """
    INSERT INTO wallets (subscriber_id, state, sequence, create_time_us)
    SELECT printf('s%07d', n), 'ACTIVE', 1 + charges, {time} FROM totals
"""
GRANTS = """
    INSERT INTO grants (grant_id, subscriber_id, source, priority, amount_microcredits, unspent_microcredits,
        effective_time_us, expire_time_us, create_time_us)
    SELECT 'first', printf('s%07d', n), 'TOP_UP', 10, {grant}, {grant} - charges * {price}, 0, NULL, {time}
    FROM totals
"""
AUTHORIZATIONS = """
    INSERT INTO authorizations (authorization_id, subscriber_id, app_id, channel, cap_microcredits, allowed_models,
        charged_microcredits, create_time_us, revoke_time_us)
    SELECT printf('s%07d', n), printf('s%07d', n), 'bench', 'APP', NULL, '[]', charges * {price}, {time}, NULL
    FROM totals
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
    SELECT {id}, printf('s%07d', wallet), printf('s%07d', wallet), 'bench', 'APP', {id}, x'', 'bench', 1,
        'bench', 'bench', 'TOKENIZER', 'bench', 5000, 'SETTLED', 'FINISHED', 5000, {price}, '[["COMPLETION",{price}]]',
        0, '[]', {time}, {time}
    FROM arrivals
"""
CHARGES = """
    INSERT INTO charges (charge_id, reservation_id, subscriber_id, authorization_id, app_id, channel, request_id,
        content_hash, model_id, provider_id, attempts, counting_source, usage_counted, usage_reported, usage_mismatch,
        rate_card_id, captured_microcredits, charged_microcredits,
        delivered_microcredits, allocations, finish_reason, close_cause, create_time_us,
        settle_time_us)
    SELECT {id}, {id}, printf('s%07d', wallet), printf('s%07d', wallet), 'bench', 'APP', {id}, x'',
        'bench', 'bench', '[["bench","",20,40]]', 'TOKENIZER', '[["COMPLETION",{price}]]', NULL, 0, 'bench', {price},
        {price}, {price}, '[["first",{price}]]', 'STOP', 'FINISHED', {time}, {time}
    FROM arrivals
"""
GRANT_TRANSFERS = """
    INSERT INTO transfers (subscriber_id, sequence, kind, debit_account, credit_account, amount_microcredits, grant_id,
        charge_id, create_time_us, grant_terms)
    SELECT printf('s%07d', n), 1, 'GRANT', 'payments', 'grant:first', {grant}, 'first', '', {time},
        '["TOP_UP",10,0,0,0]'
    FROM totals
"""
CHARGE_TRANSFERS = """
    INSERT INTO transfers (subscriber_id, sequence, kind, debit_account, credit_account, amount_microcredits, grant_id,
        charge_id, create_time_us)
    SELECT printf('s%07d', wallet), sequence, 'CHARGE', 'grant:first', 'revenue', {price}, 'first', {id}, {time}
    FROM arrivals
"""


# Whole credits and the rest: what each account's day was debited and credited.
ACCOUNT_DAYS = """
    INSERT INTO account_days (account, day, debited_credits, debited_rest, credited_credits, credited_rest)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def generate(ledger: Path, *, wallets: int, charges: int, made: Callable[[int], None]) -> None:
    """Fill a ledger that was just created; ``made`` hears of charges."""
    connection = sqlite3.connect(ledger, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA cache_size = -2000000")
    connection.execute(ARRIVALS)
    connection.execute(TOTALS)
    values = {"grant": GRANT_MICROCREDITS, "price": CHARGE_MICROCREDITS, "time": TIME_US, "id": _ID}
    connection.execute("BEGIN")
    connection.execute("INSERT OR IGNORE INTO owners VALUES ('bench', 1, {time}, {time})".format(**values))
    connection.execute(RATE_CARD)
    sequences = array("q", [1]) * wallets  # of each wallet's last transfer: its grant's is the first
    chance = random.Random(SEED)
    for first in range(0, charges, ROWS_AT_ONCE):
        end = min(charges, first + ROWS_AT_ONCE)
        connection.execute("DELETE FROM arrivals")
        connection.executemany(ARRIVE, _arrivals(range(first, end), sequences, chance))
        for sql in (RESERVATIONS, CHARGES, CHARGE_TRANSFERS):
            connection.execute(sql.format(**values))
        made(end - first)
    connection.executemany(ADD_TOTAL, enumerate(last - 1 for last in sequences))
    for sql in (WALLETS, GRANTS, AUTHORIZATIONS, GRANT_TRANSFERS):
        connection.execute(sql.format(**values))
    granted, charged = wallets * GRANT_MICROCREDITS, charges * CHARGE_MICROCREDITS
    day = TIME_US // 86_400_000_000
    moved = (("payments", granted, 0), ("grants", charged, granted), ("revenue", 0, charged))
    days = [(account, day, *divmod(debit, 1_000_000), *divmod(credit, 1_000_000)) for account, debit, credit in moved]
    connection.executemany(ACCOUNT_DAYS, days)
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def _arrivals(numbers: range, sequences: "array[int]", chance: random.Random) -> Iterator[tuple[int, int, int]]:
    """Charges of wallets anywhere; each wallet's last sequence is moved on."""
    for number in numbers:
        wallet = int(chance.random() * len(sequences))
        sequences[wallet] += 1
        yield number, wallet, sequences[wallet]

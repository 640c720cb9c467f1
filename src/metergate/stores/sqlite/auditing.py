"""Reads a whole ledger for the audit in one consistent view, subscriber by subscriber, in bounded memory."""

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from metergate.core.audit import SubscriberLedger
from metergate.core.rows import Charge, Transfer, Wallet, WalletState
from metergate.stores.sqlite import codec

Row = TypeVar("Row")
Result = TypeVar("Result")
Run = Callable[[Callable[[], Result]], Awaitable[Result]]

# Rows that one read brings into memory.
PAGE_ROWS = 1_000

# Ids that one finding names: enough to see what is wrong, bounded whatever is wrong.
NAMED_IDS_MAX = 100

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound

# Every table is asked, so that books whose wallet is missing are found too.
SUBSCRIBER_AFTER = "SELECT min(subscriber_id) FROM ({})".format(
    " UNION ALL ".join(
        f"SELECT min(subscriber_id) AS subscriber_id FROM {table} WHERE subscriber_id > ?1"
        for table in ("wallets", "grants", "authorizations", "reservations", "charges", "transfers")
    )
)
WALLET = f"SELECT {codec.WALLET} FROM wallets WHERE subscriber_id = ?"
GRANTS = f"SELECT {codec.GRANT} FROM grants WHERE subscriber_id = ? ORDER BY grant_number"
AUTHORIZATIONS = f"SELECT {codec.AUTHORIZATION} FROM authorizations WHERE subscriber_id = ?"
OPEN_RESERVATIONS = f"""
    SELECT {codec.RESERVATION} FROM reservations INDEXED BY reservations_active
    WHERE subscriber_id = ? AND state = 'ACTIVE'
"""
SETTLED_WITHOUT_CHARGE = f"""
    SELECT reservation_id FROM reservations
    WHERE subscriber_id = ? AND state = 'SETTLED'
        AND NOT EXISTS (SELECT 1 FROM charges WHERE charges.reservation_id = reservations.reservation_id)
    LIMIT {NAMED_IDS_MAX}
"""
# A charge is written from its reservation: the two must tell the same story.
CHARGES_WITHOUT_SETTLED = f"""
    SELECT charge_id FROM charges
    WHERE subscriber_id = ? AND NOT EXISTS (
        SELECT 1 FROM reservations
        WHERE reservations.reservation_id = charges.reservation_id
            AND reservations.state = 'SETTLED'
            AND reservations.captured_microcredits = charges.captured_microcredits
            AND (reservations.subscriber_id, reservations.authorization_id, reservations.request_id)
                = (charges.subscriber_id, charges.authorization_id, charges.request_id)
    )
    LIMIT {NAMED_IDS_MAX}
"""
CHARGES_AFTER = f"""
    SELECT charge_number, {codec.CHARGE} FROM charges
    WHERE subscriber_id = ? AND charge_number > ? ORDER BY charge_number LIMIT {PAGE_ROWS}
"""
TRANSFERS_AFTER = f"""
    SELECT sequence, {codec.TRANSFER} FROM transfers
    WHERE subscriber_id = ? AND sequence > ? ORDER BY sequence LIMIT {PAGE_ROWS}
"""


async def read_ledgers(connection: sqlite3.Connection, run: Run[Any]) -> AsyncGenerator[SubscriberLedger, None]:
    """Every subscriber's books in order of id; ``run`` calls a function on the connection's thread.

    A ledger's own iterators are read before the next ledger is asked for.
    """
    await run(lambda: connection.execute("BEGIN"))
    subscriber_id = ""
    while (ledger := await run(partial(_next_ledger, connection, run, subscriber_id))) is not None:
        yield ledger
        subscriber_id = ledger.wallet.subscriber_id


def _next_ledger(connection: sqlite3.Connection, run: Run[Any], after: str) -> SubscriberLedger | None:
    mine = connection.execute(SUBSCRIBER_AFTER, (after,)).fetchone()
    (subscriber_id,) = mine
    if subscriber_id is None:
        return None
    columns = connection.execute(WALLET, mine).fetchone()
    wallet = _missing_wallet(subscriber_id) if columns is None else codec.wallet(columns)

    def rows(sql: str, decode: Callable[[codec.Columns], Row]) -> tuple[Row, ...]:
        return tuple(decode(columns) for columns in connection.execute(sql, mine))

    charges: AsyncIterator[Charge] = _pages(connection, run, CHARGES_AFTER, codec.charge, subscriber_id)
    transfers: AsyncIterator[Transfer] = _pages(connection, run, TRANSFERS_AFTER, codec.transfer, subscriber_id)
    return SubscriberLedger(
        wallet=wallet,
        grants=rows(GRANTS, codec.grant),
        authorizations=rows(AUTHORIZATIONS, codec.authorization),
        open_reservations=rows(OPEN_RESERVATIONS, codec.reservation),
        settled_reservation_ids_without_charge=rows(SETTLED_WITHOUT_CHARGE, lambda columns: str(columns[0])),
        charge_ids_without_settled_reservation=rows(CHARGES_WITHOUT_SETTLED, lambda columns: str(columns[0])),
        charges=charges,
        transfers=transfers,
    )


def _missing_wallet(subscriber_id: str) -> Wallet:
    """As if it had never moved anything: whatever is there under its name differs from that."""
    return Wallet(subscriber_id=subscriber_id, state=WalletState.SUSPENDED, sequence=0, create_time_us=0)


def _all(connection: sqlite3.Connection, sql: str, values: codec.Columns) -> list[codec.Columns]:
    return connection.execute(sql, values).fetchall()


async def _pages(
    connection: sqlite3.Connection,
    run: Run[Any],
    sql: str,
    decode: Callable[[codec.Columns], Row],
    subscriber_id: str,
) -> AsyncIterator[Row]:
    position = 0
    while True:
        page = await run(partial(_all, connection, sql, (subscriber_id, position)))
        for columns in page:
            yield decode(columns[1:])
        if len(page) < PAGE_ROWS:
            return
        position = page[-1][0]

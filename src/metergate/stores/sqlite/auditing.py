"""Reads a whole ledger for the audit in one consistent view, subscriber by subscriber, in bounded memory."""

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from metergate.core.accounts import AccountBalance
from metergate.core.audit import ClosedProblem, ClosedReservation, SubscriberLedger, UnreadableRow
from metergate.core.rating import RateCard
from metergate.core.rows import Wallet, WalletState
from metergate.ports import ALL_DAYS
from metergate.stores.sqlite import codec
from metergate.stores.sqlite.queries import Query

Row = TypeVar("Row")
Result = TypeVar("Result")
Run = Callable[[Callable[[], Result]], Awaitable[Result]]

# Rows that one read brings into memory.
PAGE_ROWS = 1_000

# Ids that one finding names: enough to see what is wrong, bounded whatever is wrong.
NAMED_IDS_MAX = 100

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound

# Every table is asked, so that books whose wallet is missing are found too.
_TABLES = ("wallets", "grants", "authorizations", "reservations", "charges", "corrections", "transfers")


def _smallest_subscriber(condition: str) -> str:
    smallest = (f"SELECT min(subscriber_id) AS subscriber_id FROM {table} {condition}" for table in _TABLES)
    return f"SELECT min(subscriber_id) FROM ({' UNION ALL '.join(smallest)})"


SUBSCRIBER_FIRST = _smallest_subscriber("")
SUBSCRIBER_AFTER = _smallest_subscriber("WHERE subscriber_id > ?1")
RATE_CARDS = f"SELECT {codec.RATE_CARD} FROM rate_cards"
WALLET = f"SELECT {codec.WALLET} FROM wallets WHERE subscriber_id = ?"
GRANTS = f"SELECT {codec.GRANT} FROM grants WHERE subscriber_id = ? ORDER BY grant_number"
AUTHORIZATIONS = f"SELECT {codec.AUTHORIZATION} FROM authorizations WHERE subscriber_id = ?"
OPEN_RESERVATIONS = f"""
    SELECT {codec.RESERVATION} FROM reservations INDEXED BY reservations_active
    WHERE subscriber_id = ? AND state = 'ACTIVE'
"""
_HAS_OWNER = """
    EXISTS (
        SELECT 1 FROM owners
        WHERE owners.owner_id = reservations.owner_id AND owners.epoch = reservations.owner_epoch
    )
"""
OPEN_WITHOUT_OWNER = f"""
    SELECT reservation_id FROM reservations INDEXED BY reservations_active
    WHERE subscriber_id = ? AND state = 'ACTIVE' AND NOT {_HAS_OWNER} LIMIT {NAMED_IDS_MAX}
"""
_CLOSED_PROBLEMS = {
    ClosedProblem.NOT_CHARGED: """
        state = 'SETTLED' AND NOT EXISTS (
            SELECT 1 FROM charges WHERE charges.reservation_id = reservations.reservation_id
        )
    """,
    ClosedProblem.SETS_ASIDE: "allocations <> '[]'",
    ClosedProblem.HALF_CLOSED: "close_cause IS NULL OR close_time_us IS NULL",
    ClosedProblem.WATERMARKS: """
        NOT (
            0 <= delivered_microcredits AND delivered_microcredits <= captured_microcredits
            AND captured_microcredits <= reserved_microcredits AND reserved_microcredits <= limit_microcredits
        )
    """,
    ClosedProblem.DELIVERED: "state = 'RELEASED' AND delivered_microcredits > 0",
    ClosedProblem.OWNERLESS: f"NOT {_HAS_OWNER}",
}
_CLOSED_CASES = " ".join(f"WHEN {condition} THEN '{problem.name}'" for problem, condition in _CLOSED_PROBLEMS.items())
# One reading of a subscriber's reservations finds all of it.
WRONG_CLOSED = f"""
    SELECT reservation_id, problem FROM (
        SELECT reservation_id, CASE {_CLOSED_CASES} END AS problem FROM reservations
        WHERE subscriber_id = ? AND state <> 'ACTIVE'
    )
    WHERE problem IS NOT NULL LIMIT {NAMED_IDS_MAX}
"""
_REFUNDED = """
    SELECT charge_id, sum(amount_microcredits) AS refunded_microcredits FROM corrections
    WHERE subscriber_id = ?1 AND kind = 'REFUND' GROUP BY charge_id
"""
REFUNDED_TOO_MUCH = f"""
    SELECT charge_id FROM ({_REFUNDED}) AS refunded LEFT JOIN charges USING (charge_id)
    WHERE charges.subscriber_id IS NOT ?1 OR refunded_microcredits > charged_microcredits LIMIT {NAMED_IDS_MAX}
"""
REFUNDED_BY_AUTHORIZATION = f"""
    SELECT authorization_id, sum(refunded_microcredits) FROM ({_REFUNDED}) AS refunded JOIN charges USING (charge_id)
    GROUP BY authorization_id
"""
# A charge is written from its reservation: the two must tell the same story.
_SHARED_COLUMNS = (
    "subscriber_id",
    "authorization_id",
    "app_id",
    "channel",
    "request_id",
    "content_hash",
    "model_id",
    "provider_id",
    "counting_source",
    "rate_card_id",
    "captured_microcredits",
    "close_cause",
    "create_time_us",
)
# Of what was pruned, nothing is left to compare a charge with.
CHARGES_WITHOUT_SETTLED = f"""
    SELECT charge_id FROM charges
    WHERE subscriber_id = ?1 AND NOT EXISTS (
        SELECT 1 FROM reservations
        WHERE reservations.reservation_id = charges.reservation_id
            AND reservations.state = 'SETTLED'
            AND reservations.close_time_us = charges.settle_time_us
            AND {" AND ".join(f"reservations.{column} = charges.{column}" for column in _SHARED_COLUMNS)}
    ) AND (
        settle_time_us >= ?2
        OR EXISTS (SELECT 1 FROM reservations WHERE reservations.reservation_id = charges.reservation_id)
    )
    LIMIT {NAMED_IDS_MAX}
"""
PRUNED_BEFORE = "SELECT reservations_pruned_before_us FROM meta"
ERASURE = "SELECT erase_time_us FROM erasures WHERE subscriber_id = ?"
CHARGES_AFTER = f"""
    SELECT charge_number, {codec.CHARGE} FROM charges
    WHERE subscriber_id = ? AND charge_number > ? ORDER BY charge_number LIMIT {PAGE_ROWS}
"""
CORRECTIONS_AFTER = f"""
    SELECT correction_number, {codec.CORRECTION} FROM corrections
    WHERE subscriber_id = ? AND correction_number > ? ORDER BY correction_number LIMIT {PAGE_ROWS}
"""
TRANSFERS_AFTER = f"""
    SELECT sequence, {codec.TRANSFER} FROM transfers
    WHERE subscriber_id = ? AND sequence > ? ORDER BY sequence LIMIT {PAGE_ROWS}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """What is the same for every subscriber."""

    cards: Mapping[str, RateCard]
    balances: Mapping[str, AccountBalance]
    pruned_before_us: int  # settled reservations from before it may be gone


async def read_ledgers(
    connection: sqlite3.Connection, run: Run[Any], after: str | None
) -> AsyncGenerator[SubscriberLedger, None]:
    """The books of every subscriber after one, in order of id; ``run`` calls a function on the connection's thread.

    A ledger's own iterators are read before the next ledger is asked for.
    """
    await run(lambda: connection.execute("BEGIN"))
    unreadable: list[UnreadableRow] = []  # rate cards are named with the first subscriber
    whole = await run(partial(_whole, connection, unreadable))
    subscriber_id = await run(partial(_next_subscriber, connection, after))
    while subscriber_id is not None:
        yield await run(partial(_ledger_of, connection, run, subscriber_id, whole, unreadable))
        subscriber_id = await run(partial(_next_subscriber, connection, subscriber_id))
        unreadable = []


def _whole(connection: sqlite3.Connection, unreadable: list[UnreadableRow]) -> _Whole:
    cards = _decoded("rate_cards", connection.execute(RATE_CARDS), codec.rate_card, unreadable)
    pruned = connection.execute(PRUNED_BEFORE).fetchone()
    return _Whole(
        cards={card.rate_card_id: card for card in cards},
        balances=Query(connection).account_balances(ALL_DAYS),
        pruned_before_us=0 if pruned is None else pruned[0],
    )


def _next_subscriber(connection: sqlite3.Connection, after: str | None) -> str | None:
    found = connection.execute(SUBSCRIBER_FIRST) if after is None else connection.execute(SUBSCRIBER_AFTER, (after,))
    (subscriber_id,) = found.fetchone()
    return None if subscriber_id is None else str(subscriber_id)


def _ledger_of(
    connection: sqlite3.Connection,
    run: Run[Any],
    subscriber_id: str,
    whole: _Whole,
    unreadable: list[UnreadableRow],
) -> SubscriberLedger:
    erasure = connection.execute(ERASURE, (subscriber_id,)).fetchone()
    # An erasure removes closed reservations too.
    pruned_before_us = whole.pruned_before_us if erasure is None else max(whole.pruned_before_us, erasure[0] + 1)

    def rows(table: str, sql: str, decode: Callable[[codec.Columns], Row], *values: object) -> tuple[Row, ...]:
        return tuple(_decoded(table, connection.execute(sql, (subscriber_id, *values)), decode, unreadable))

    def pages(table: str, sql: str, decode: Callable[[codec.Columns], Row]) -> AsyncIterator[Row]:
        return _pages(connection, run, sql, subscriber_id, partial(_decoded, table, decode=decode, noted=unreadable))

    return SubscriberLedger(
        wallet=next(iter(rows("wallets", WALLET, codec.wallet)), _missing_wallet(subscriber_id)),
        is_erased=erasure is not None,
        rate_cards=whole.cards,
        account_balances=whole.balances,
        grants=rows("grants", GRANTS, codec.grant),
        authorizations=rows("authorizations", AUTHORIZATIONS, codec.authorization),
        open_reservations=rows("reservations", OPEN_RESERVATIONS, codec.reservation),
        ownerless_reservation_ids=rows("reservations", OPEN_WITHOUT_OWNER, _id),
        wrong_closed_reservations=rows("reservations", WRONG_CLOSED, _closed),
        charge_ids_without_settled_reservation=rows("charges", CHARGES_WITHOUT_SETTLED, _id, pruned_before_us),
        charge_ids_refunded_too_much=rows("corrections", REFUNDED_TOO_MUCH, _id),
        refunded_microcredits=dict(rows("corrections", REFUNDED_BY_AUTHORIZATION, _sum)),
        charges=pages("charges", CHARGES_AFTER, codec.charge),
        corrections=pages("corrections", CORRECTIONS_AFTER, codec.correction),
        transfers=pages("transfers", TRANSFERS_AFTER, codec.transfer),
        unreadable_rows=unreadable,
    )


def _id(columns: codec.Columns) -> str:
    return str(columns[0])


def _closed(columns: codec.Columns) -> ClosedReservation:
    return ClosedReservation(reservation_id=str(columns[0]), problem=ClosedProblem[columns[1]])


def _sum(columns: codec.Columns) -> tuple[str, int]:
    return str(columns[0]), int(columns[1])


def _decoded(
    table: str, rows: Iterable[codec.Columns], decode: Callable[[codec.Columns], Row], noted: list[UnreadableRow]
) -> Iterator[Row]:
    """The rows that can be read; the others are noted."""
    for columns in rows:
        try:
            yield decode(columns)
        except (ValueError, TypeError) as exc:
            if len(noted) < NAMED_IDS_MAX:
                name = columns[1] if table == "transfers" else columns[0]
                noted.append(UnreadableRow(row_name=f"{table}/{name}", problem=str(exc)))


def _missing_wallet(subscriber_id: str) -> Wallet:
    """As if it had never moved anything: whatever is there under its name differs from that."""
    return Wallet(subscriber_id=subscriber_id, state=WalletState.SUSPENDED, sequence=0, create_time_us=0)


def _all(connection: sqlite3.Connection, sql: str, values: codec.Columns) -> list[codec.Columns]:
    return connection.execute(sql, values).fetchall()


async def _pages(
    connection: sqlite3.Connection,
    run: Run[Any],
    sql: str,
    subscriber_id: str,
    decode: Callable[[list[codec.Columns]], Iterator[Row]],
) -> AsyncIterator[Row]:
    position = 0
    while True:
        page = await run(partial(_all, connection, sql, (subscriber_id, position)))
        for row in decode([columns[1:] for columns in page]):
            yield row
        if len(page) < PAGE_ROWS:
            return
        position = page[-1][0]

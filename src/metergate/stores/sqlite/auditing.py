"""Reads a whole ledger for the audit in one consistent view, subscriber by subscriber, in bounded memory."""

import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from metergate.core.accounts import AccountBalance
from metergate.core.audit import ClosedProblem, ClosedReservation, SubscriberLedger, UnreadableRow
from metergate.core.credits import MICROCREDITS_PER_CREDIT
from metergate.core.rating import RateCard
from metergate.core.rows import Grant, Wallet, WalletState
from metergate.ports import ALL_DAYS
from metergate.stores.sqlite import codec, derived
from metergate.stores.sqlite.erased_names import ErasedNames, Renamed, unfinished
from metergate.stores.sqlite.queries import Query

Row = TypeVar("Row")
Result = TypeVar("Result")
Run = Callable[[Callable[[], Result]], Awaitable[Result]]

# Rows that one read brings into memory.
PAGE_ROWS = 1_000

# Subscribers whose books are read at once, unless they have more rows than a page.
SUBSCRIBERS_AT_ONCE = 64

# Closed reservations that one look at the whole ledger goes through: a tenth of a second.
RESERVATIONS_AT_ONCE = 50_000

# Ids that one finding names: enough to see what is wrong, bounded whatever is wrong.
NAMED_IDS_MAX = 100

_AFTER_ALL_TIMES = 2**63 - 1

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound

# Every table is asked, so that books whose wallet is missing are found too.
# Of settled reservations there are charges.
_TABLES = (
    "wallets WHERE true",
    "grants WHERE true",
    "authorizations WHERE true",
    "reservations WHERE state = 'ACTIVE'",
    "reservations WHERE state = 'RELEASED'",
    "charges WHERE true",
    "corrections WHERE true",
    "transfers WHERE true",
)


def _smallest_subscriber(condition: str) -> str:
    smallest = (f"SELECT min(subscriber_id) AS subscriber_id FROM {table} {condition}" for table in _TABLES)
    return f"SELECT min(subscriber_id) FROM ({' UNION ALL '.join(smallest)})"


SUBSCRIBER_FIRST = _smallest_subscriber("")
SUBSCRIBER_AFTER = _smallest_subscriber("AND subscriber_id > ?1")
RATE_CARDS = f"SELECT {codec.RATE_CARD} FROM rate_cards"
WALLET = f"SELECT {codec.WALLET} FROM wallets WHERE subscriber_id = ?"
GRANTS = f"""
    SELECT {derived.GRANT_READ}, is_spent = 1 AND unspent_microcredits <> 0 FROM grants
    WHERE subscriber_id = ? ORDER BY grant_number
"""
AUTHORIZATIONS = f"SELECT {derived.AUTHORIZATION_READ} FROM authorizations WHERE subscriber_id = ?"
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
# Read in the order that they are stored in, a piece at a time: by subscriber, each would lie on another page.
RESERVATION_LAST = "SELECT coalesce(max(rowid), 0) FROM reservations"
WRONG_CLOSED = f"""
    SELECT subscriber_id, reservation_id, problem FROM (
        SELECT subscriber_id, reservation_id, CASE {_CLOSED_CASES} END AS problem FROM reservations
        WHERE rowid > ?1 AND rowid <= ?2 AND state <> 'ACTIVE'
    )
    WHERE problem IS NOT NULL LIMIT ?3
"""
# Whole credits and the rest: a few of the largest refunds are more than 64 bits of microcredits.
_REFUNDED = """
    SELECT
        charge_id,
        sum(amount_microcredits / 1000000) + sum(amount_microcredits % 1000000) / 1000000 AS refunded_credits,
        sum(amount_microcredits % 1000000) % 1000000 AS refunded_rest
    FROM corrections WHERE subscriber_id = ?1 AND kind = 'REFUND' GROUP BY charge_id
"""
# ?2, ?3: what the subscriber is called, and, if it is being forgotten, was called before.
REFUNDED_TOO_MUCH = f"""
    SELECT charge_id FROM ({_REFUNDED}) AS refunded LEFT JOIN charges USING (charge_id)
    WHERE charges.subscriber_id IS NOT ?2 AND charges.subscriber_id IS NOT ?3
        OR (refunded_credits, refunded_rest) > (charged_microcredits / 1000000, charged_microcredits % 1000000)
    LIMIT {NAMED_IDS_MAX}
"""
REFUNDED_BY_AUTHORIZATION = f"""
    SELECT authorization_id, sum(refunded_credits), sum(refunded_rest)
    FROM ({_REFUNDED}) AS refunded JOIN charges USING (charge_id) GROUP BY authorization_id
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
META = "SELECT reservations_pruned_before_us, reserved_credits, reserved_rest FROM meta"
ERASURE = "SELECT 1 FROM erasures WHERE subscriber_id = ?"
CHARGES_AFTER = f"""
    SELECT charge_number, {codec.CHARGE} FROM charges
    WHERE subscriber_id = ? AND charge_number > ? ORDER BY charge_number LIMIT {PAGE_ROWS}
"""
CORRECTIONS_AFTER = f"""
    SELECT correction_number, {codec.CORRECTION} FROM corrections
    WHERE subscriber_id = ? AND correction_number > ? ORDER BY correction_number LIMIT {PAGE_ROWS}
"""
TRANSFERS_AFTER = f"""
    SELECT sequence AS position, {codec.TRANSFER} FROM transfers
    WHERE subscriber_id = ? AND sequence > ? ORDER BY sequence LIMIT {PAGE_ROWS}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """What is the same for every subscriber."""

    cards: Mapping[str, RateCard]
    balances: Mapping[str, AccountBalance]
    reserved_microcredits: int  # by open reservations, as counted beside them
    pruned_before_us: int  # settled reservations from before it may be gone
    wrong_closed: Mapping[str, Sequence[ClosedReservation]]  # by subscriber, of those that were not handed over yet
    forgotten: Mapping[str, Renamed]  # who is being forgotten, by pseudonym


async def read_ledgers(
    connection: sqlite3.Connection, run: Run[Any], after: str | None
) -> AsyncGenerator[SubscriberLedger, None]:
    """The books of every subscriber after one, in order of id; ``run`` calls a function on the connection's thread.

    A ledger's own iterators are read before the next ledger is asked for. All closed reservations are read before the
    first. If not all ledgers are asked for, it is some of them, by chance, and whoever one of these is wrong of comes
    first, whatever it is called.
    """
    await run(lambda: connection.execute("BEGIN"))
    unreadable: list[UnreadableRow] = []  # rate cards are named with the first subscriber
    wrong_closed: dict[str, list[ClosedReservation]] = {}
    (last,) = await run(lambda: connection.execute(RESERVATION_LAST).fetchone())
    pieces = range(0, last, RESERVATIONS_AT_ONCE)
    if after is not None and pieces:
        pieces = pieces[(some := secrets.randbelow(len(pieces))) : some + 1]
    for position in pieces:
        await run(partial(_find_wrong_closed, connection, position, wrong_closed))
    whole = await run(partial(_whole, connection, unreadable, wrong_closed))
    if after is not None:
        for subscriber_id in tuple(wrong_closed):
            ledger, _ = await run(partial(_ledger_of, connection, run, subscriber_id, whole, unreadable))
            yield ledger
            del wrong_closed[subscriber_id]
    while ledgers := await run(partial(_next_ledgers, connection, run, after, whole, unreadable)):
        for ledger in ledgers:
            yield ledger
        after, unreadable = ledgers[-1].wallet.subscriber_id, []


def _next_ledgers(
    connection: sqlite3.Connection,
    run: Run[Any],
    after: str | None,
    whole: _Whole,
    unreadable: list[UnreadableRow],
) -> list[SubscriberLedger]:
    """Some at once: a hop to this thread for each, and for each of its tables, took longer than reading it."""
    ledgers: list[SubscriberLedger] = []
    rows = 0
    while len(ledgers) < SUBSCRIBERS_AT_ONCE and rows < PAGE_ROWS:
        after = _next_subscriber(connection, whole, after)
        if after is None:
            break
        ledger, count = _ledger_of(connection, run, after, whole, unreadable)
        ledgers.append(ledger)
        rows, unreadable = rows + count, []
    return ledgers


def _find_wrong_closed(
    connection: sqlite3.Connection, position: int, by_subscriber: dict[str, list[ClosedReservation]]
) -> None:
    """Add what is wrong with the closed reservations after a position, up to NAMED_IDS_MAX in all."""
    room = NAMED_IDS_MAX - sum(map(len, by_subscriber.values()))
    if room <= 0:
        return
    found = connection.execute(WRONG_CLOSED, (position, position + RESERVATIONS_AT_ONCE, room))
    for subscriber_id, reservation_id, problem in found:
        closed = ClosedReservation(reservation_id=str(reservation_id), problem=ClosedProblem[problem])
        by_subscriber.setdefault(str(subscriber_id), []).append(closed)


def _whole(
    connection: sqlite3.Connection,
    unreadable: list[UnreadableRow],
    wrong_closed: dict[str, list[ClosedReservation]],
) -> _Whole:
    forgotten = {renamed.new: renamed for renamed in unfinished(connection)}
    for renamed in forgotten.values():
        if renamed.old in wrong_closed:
            wrong_closed.setdefault(renamed.new, []).extend(wrong_closed.pop(renamed.old))
    cards = _decoded("rate_cards", connection.execute(RATE_CARDS), codec.rate_card, unreadable)
    pruned_before_us, reserved_credits, reserved_rest = connection.execute(META).fetchone() or (0, 0, 0)
    return _Whole(
        cards={card.rate_card_id: card for card in cards},
        balances=Query(connection).account_balances(ALL_DAYS),
        pruned_before_us=pruned_before_us,
        reserved_microcredits=reserved_credits * MICROCREDITS_PER_CREDIT + reserved_rest,
        wrong_closed=wrong_closed,
        forgotten=forgotten,
    )


def _next_subscriber(connection: sqlite3.Connection, whole: _Whole, after: str | None) -> str | None:
    """Who is being forgotten is found by its pseudonym alone."""
    old_names = {renamed.old for renamed in whole.forgotten.values()}
    while (subscriber_id := _next_name(connection, whole, after)) in old_names:
        after = subscriber_id
    return subscriber_id


def _next_name(connection: sqlite3.Connection, whole: _Whole, after: str | None) -> str | None:
    found = connection.execute(SUBSCRIBER_FIRST) if after is None else connection.execute(SUBSCRIBER_AFTER, (after,))
    (subscriber_id,) = found.fetchone()
    candidates = [name for name in whole.wrong_closed if after is None or name > after]
    if subscriber_id is not None:
        candidates.append(str(subscriber_id))
    return min(candidates, default=None)


def _ledger_of(
    connection: sqlite3.Connection,
    run: Run[Any],
    subscriber_id: str,
    whole: _Whole,
    unreadable: list[UnreadableRow],
) -> tuple[SubscriberLedger, int]:
    """A subscriber's books, and how many rows of them are in memory beyond those that every subscriber has some of."""
    erasure = connection.execute(ERASURE, (subscriber_id,)).fetchone()
    # An erasure removes all closed reservations, whatever the clock said when it was asked for.
    pruned_before_us = whole.pruned_before_us if erasure is None else _AFTER_ALL_TIMES

    forgotten = whole.forgotten.get(subscriber_id)
    # What is renamed already, then, if the subscriber is being forgotten, what is not.
    readers = [_Reader(connection, subscriber_id, None)]
    if forgotten is not None:
        readers.append(_Reader(connection, forgotten.old, ErasedNames(connection, forgotten)))
    names = (subscriber_id, subscriber_id if forgotten is None else forgotten.old)

    def rows(table: str, sql: str, decode: Callable[[codec.Columns], Row], *values: object) -> tuple[Row, ...]:
        found = [columns for reader in readers for columns in reader.rows(sql, *values)]
        return tuple(_decoded(table, found, decode, unreadable))

    def own_rows(table: str, sql: str, decode: Callable[[codec.Columns], Row]) -> tuple[Row, ...]:
        """Those that have no old name."""
        return tuple(_decoded(table, readers[0].rows(sql), decode, unreadable))

    count = 0

    def pages(table: str, sql: str, decode: Callable[[codec.Columns], Row]) -> AsyncIterator[Row]:
        nonlocal count
        firsts = [reader.page(sql, 0) for reader in readers]
        count += sum(map(len, firsts))
        read = partial(_decoded, table, decode=decode, noted=unreadable)
        return _pages(run, sql, tuple(zip(readers, firsts, strict=True)), read)

    ledger = SubscriberLedger(
        wallet=next(iter(own_rows("wallets", WALLET, codec.wallet)), _missing_wallet(subscriber_id)),
        is_erased=erasure is not None,
        rate_cards=whole.cards,
        account_balances=whole.balances,
        reserved_microcredits=whole.reserved_microcredits,
        grants=rows("grants", GRANTS, partial(_grant, unreadable)),
        authorizations=own_rows("authorizations", AUTHORIZATIONS, codec.authorization),
        open_reservations=rows("reservations", OPEN_RESERVATIONS, codec.reservation),
        ownerless_reservation_ids=rows("reservations", OPEN_WITHOUT_OWNER, _id),
        wrong_closed_reservations=tuple(whole.wrong_closed.get(subscriber_id, ())),
        charge_ids_without_settled_reservation=rows("charges", CHARGES_WITHOUT_SETTLED, _id, pruned_before_us),
        charge_ids_refunded_too_much=rows("corrections", REFUNDED_TOO_MUCH, _id, *names),
        refunded_microcredits=dict(own_rows("corrections", REFUNDED_BY_AUTHORIZATION, _sum)),
        charges=pages("charges", CHARGES_AFTER, codec.charge),
        corrections=pages("corrections", CORRECTIONS_AFTER, codec.correction),
        transfers=pages("transfers", TRANSFERS_AFTER, codec.transfer),
        unreadable_rows=unreadable,
    )
    return ledger, count


def _grant(unreadable: list[UnreadableRow], columns: codec.Columns) -> Grant:
    """A grant that requests do not see is noted too."""
    if columns[-1] and len(unreadable) < NAMED_IDS_MAX:
        problem = "it is marked as spent, and is not: no request can spend it"
        unreadable.append(UnreadableRow(row_name=f"grants/{columns[0]}", problem=problem))
    return codec.grant(columns)


def _id(columns: codec.Columns) -> str:
    return str(columns[0])


def _sum(columns: codec.Columns) -> tuple[str, int]:
    return str(columns[0]), int(columns[1]) * MICROCREDITS_PER_CREDIT + int(columns[2])


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


class _Reader:
    """Reads one subscriber's rows; with ``names``, as they are called from now on."""

    def __init__(self, connection: sqlite3.Connection, subscriber_id: str, names: ErasedNames | None) -> None:
        self._connection = connection
        self.subscriber_id = subscriber_id
        self._names = names

    def rows(self, sql: str, *values: object) -> list[codec.Columns]:
        cursor = self._connection.execute(sql, (self.subscriber_id, *values))
        found: list[codec.Columns] = cursor.fetchall()
        if self._names is None:
            return found
        columns = [name for name, *_ in cursor.description]
        return [tuple(self._names.row(dict(zip(columns, row, strict=True))).values()) for row in found]

    def page(self, sql: str, after: int) -> list[codec.Columns]:
        """The position of each row, and its columns."""
        return self.rows(sql, after)


async def _pages(
    run: Run[Any],
    sql: str,
    firsts: Sequence[tuple[_Reader, list[codec.Columns]]],
    decode: Callable[[list[codec.Columns]], Iterator[Row]],
) -> AsyncIterator[Row]:
    """The rows of each reader's first page, and of those that follow it."""
    for reader, page in firsts:
        while True:
            for row in decode([columns[1:] for columns in page]):
                yield row
            if len(page) < PAGE_ROWS:
                break
            page = await run(partial(reader.page, sql, page[-1][0]))

"""Writes the final rows of a batch, set-based, and checks that every one of them was there to be written."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from metergate.core.accounts import AccountDayKey, roll_up
from metergate.core.books import Books, GrantKey
from metergate.core.credits import MICROCREDITS_PER_CREDIT
from metergate.core.reservation import Reservation, ReservationState
from metergate.core.rows import Authorization, Grant, Wallet
from metergate.stores.sqlite import codec
from metergate.stores.sqlite.codec import Columns


class RowsMissing(Exception):
    """A row that was loaded in this transaction could not be updated in it: something else writes this file."""


def _insert(table: str, columns: str) -> str:
    marks = ", ".join("?" for _ in columns.split(","))
    return f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - constants only


INSERT_WALLET = _insert("wallets", codec.WALLET)
INSERT_GRANT = _insert("grants", codec.GRANT)
INSERT_AUTHORIZATION = _insert("authorizations", codec.AUTHORIZATION)
INSERT_RESERVATION = _insert("reservations", codec.RESERVATION)
INSERT_CHARGE = _insert("charges", codec.CHARGE)
INSERT_TRANSFER = _insert("transfers", codec.TRANSFER)
INSERT_CORRECTION = _insert("corrections", codec.CORRECTION)

# Whole credits carry what the rests beyond them add up to.
ADD_TO_ACCOUNT_DAY = """
    INSERT INTO account_days AS days (account, day, debited_credits, debited_rest, credited_credits, credited_rest)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (account, day) DO UPDATE SET
        debited_credits = days.debited_credits + excluded.debited_credits
            + (days.debited_rest + excluded.debited_rest) / 1000000,
        debited_rest = (days.debited_rest + excluded.debited_rest) % 1000000,
        credited_credits = days.credited_credits + excluded.credited_credits
            + (days.credited_rest + excluded.credited_rest) / 1000000,
        credited_rest = (days.credited_rest + excluded.credited_rest) % 1000000
"""
# Likewise. The file has one writer: nobody waits for this row.
MOVE_RESERVED = """
    UPDATE meta SET reserved_credits = reserved_credits + ?1 + (reserved_rest + ?2) / 1000000,
        reserved_rest = (reserved_rest + ?2) % 1000000
    WHERE only_row = 1
"""
UPDATE_WALLET = "UPDATE wallets SET sequence = ? WHERE subscriber_id = ?"
UPDATE_WALLET_STATE = "UPDATE wallets SET state = ? WHERE subscriber_id = ?"
_GRANT_CHANGED = """
    SET unspent_microcredits = unspent_microcredits + ?1, amount_microcredits = ?2, reverse_time_us = ?3
"""
_OF_ID = "WHERE subscriber_id = ?4 AND grant_id = ?5"
# By the index that its request found it in, which is in the writer's cache: a page of another one would be read.
UPDATE_GRANT = f"UPDATE grants INDEXED BY grants_with_credit {_GRANT_CHANGED} {_OF_ID} AND is_spent = 0"
# A statement of its own: it writes the index of grants with credit too.
UPDATE_GRANT_TO_OR_FROM_NOTHING = f"""
    UPDATE grants {_GRANT_CHANGED}, is_spent = (unspent_microcredits + ?1 = 0) {_OF_ID}
"""
UPDATE_AUTHORIZATION = "UPDATE authorizations SET charged_microcredits = ? WHERE authorization_id = ?"
REVOKE_AUTHORIZATION = "UPDATE authorizations SET revoke_time_us = ? WHERE authorization_id = ?"
_CAPTURED = "UPDATE reservations SET captured_microcredits = ?, captured_usage = ?, delivered_microcredits = ?"
_EXTENDED = f"{_CAPTURED}, reserved_microcredits = ?, allocations = ?"
_CLOSED = f"{_EXTENDED}, state = ?, close_cause = ?, close_time_us = ?"
_IF_ACTIVE = "WHERE reservation_id = ? AND state = 'ACTIVE'"
CAPTURE_RESERVATION = f"{_CAPTURED} {_IF_ACTIVE}"
# A statement of its own: nearly no reservation has one.
UPDATE_ESTIMATE = f"UPDATE reservations SET estimate = ? {_IF_ACTIVE}"  # noqa: S608 - of constants
EXTEND_RESERVATION = f"{_EXTENDED} {_IF_ACTIVE}"
CLOSE_RESERVATION = f"{_CLOSED} {_IF_ACTIVE}"


@dataclass(frozen=True, slots=True)
class Before:
    """The rows as they were before the batch, by key."""

    reservations: Mapping[str, Reservation]
    grants: Mapping[GrantKey, Grant]
    authorizations: Mapping[str, Authorization]

    @classmethod
    def of(cls, books: Books) -> Self:
        """Of books that were just loaded."""
        return cls(dict(books.reservations.rows), dict(books.grants.rows), dict(books.authorizations.rows))


def save(connection: sqlite3.Connection, books: Books, before: Before) -> None:
    """Write what the books added and changed.

    What a reservation sets aside stands on its own row only: reserving writes nothing else. RowsMissing if a count of
    rows is not what it must be; the caller then gives up the whole transaction.
    """
    write = partial(_write, connection)
    write(INSERT_WALLET, map(codec.wallet_columns, books.wallets.added.values()))
    write(UPDATE_WALLET, map(_wallet_change, books.wallets.changed.values()))
    corrected = {correction.subscriber_id for correction in books.corrections.added.values()}
    wallets = (books.wallets.rows[subscriber_id] for subscriber_id in corrected)
    write(UPDATE_WALLET_STATE, [(wallet.state, wallet.subscriber_id) for wallet in wallets])  # by nothing else
    set_aside = _set_aside(books, before)
    added = books.grants.added.items()
    write(INSERT_GRANT, [codec.grant_columns(grant, set_aside.get(key, 0)) for key, grant in added])
    partly, wholly = _grant_changes(books, before, set_aside)
    write(UPDATE_GRANT, partly)
    write(UPDATE_GRANT_TO_OR_FROM_NOTHING, wholly)
    write(INSERT_AUTHORIZATION, map(codec.authorization_columns, books.authorizations.added.values()))
    write(UPDATE_AUTHORIZATION, _authorization_changes(books, before))
    revoked = [row for row in books.authorizations.changed.values() if row.revoke_time_us is not None]  # very few
    write(REVOKE_AUTHORIZATION, [(row.revoke_time_us, row.authorization_id) for row in revoked])
    _save_changed_reservations(write, books.reservations.changed, before.reservations)  # before a request runs again
    write(INSERT_RESERVATION, map(codec.reservation_columns, books.reservations.added.values()))
    reserved = _reserved(books, before)
    write(MOVE_RESERVED, [divmod(reserved, MICROCREDITS_PER_CREDIT)] if reserved else ())
    write(INSERT_CHARGE, map(codec.charge_columns, books.charges.added.values()))
    write(INSERT_TRANSFER, map(codec.transfer_columns, books.transfers))
    write(ADD_TO_ACCOUNT_DAY, map(_account_day, roll_up(books.transfers).items()))
    write(INSERT_CORRECTION, map(codec.correction_columns, books.corrections.added.values()))


def save_captured(connection: sqlite3.Connection, reservations: Iterable[Reservation]) -> None:
    """Write what captures changed that no reservation was extended for; RowsMissing as ``save``."""
    rows = tuple(reservations)
    _write(connection, CAPTURE_RESERVATION, ((*_watermark(row), row.reservation_id) for row in rows))
    _write(connection, UPDATE_ESTIMATE, _estimates(rows))


def _estimates(rows: Iterable[Reservation]) -> list[Columns]:
    return [(codec.estimate_column(row.estimate), row.reservation_id) for row in rows if row.estimate is not None]


def _write(connection: sqlite3.Connection, sql: str, rows: Iterable[Columns]) -> None:
    columns = list(rows)
    if not columns:
        return
    count = connection.executemany(sql, columns).rowcount
    if count != len(columns):
        raise RowsMissing(f"{count} rows written of {len(columns)}: {sql}")


def _save_changed_reservations(
    write: Callable[[str, Iterable[Columns]], None],
    changed: Mapping[str, Reservation],
    loaded: Mapping[str, Reservation],
) -> None:
    """Three statements, so that a capture, by far the most frequent, writes no more than it must."""
    captured: list[Columns] = []
    extended: list[Columns] = []
    closed: list[Columns] = []
    for row in changed.values():
        watermark = _watermark(row)
        if row.state is ReservationState.ACTIVE and row.allocations is loaded[row.reservation_id].allocations:
            captured.append((*watermark, row.reservation_id))
            continue
        extension = (row.reserved_microcredits, codec.allocation_columns(row.allocations))
        if row.state is ReservationState.ACTIVE:
            extended.append((*watermark, *extension, row.reservation_id))
        else:
            end = (row.state, row.close_cause, row.close_time_us)
            closed.append((*watermark, *extension, *end, row.reservation_id))
    write(UPDATE_ESTIMATE, _estimates(row for row in changed.values() if row.state is ReservationState.ACTIVE))
    write(CAPTURE_RESERVATION, captured)
    write(EXTEND_RESERVATION, extended)
    write(CLOSE_RESERVATION, closed)


def _watermark(row: Reservation) -> Columns:
    return (row.captured_microcredits, codec.usage_columns(row.captured_usage), row.delivered_microcredits)


def _wallet_change(row: Wallet) -> Columns:
    return (row.sequence, row.subscriber_id)


def _set_aside(books: Books, before: Before) -> dict[GrantKey, int]:
    """By how much the batch moved what open reservations set aside of each grant."""
    moved: dict[GrantKey, int] = {}
    for row in books.reservations.added.values():
        for part in row.allocations:
            key = (row.subscriber_id, part.grant_id)
            moved[key] = moved.get(key, 0) + part.amount_microcredits
    for row in books.reservations.changed.values():
        allocations = before.reservations[row.reservation_id].allocations
        if row.allocations is allocations:
            continue
        for part in row.allocations:
            key = (row.subscriber_id, part.grant_id)
            moved[key] = moved.get(key, 0) + part.amount_microcredits
        for part in allocations:
            key = (row.subscriber_id, part.grant_id)
            moved[key] = moved.get(key, 0) - part.amount_microcredits
    return moved


def _reserved(books: Books, before: Before) -> int:
    """By how many microcredits the batch moved what all open reservations have reserved."""
    rows = (*books.reservations.added.values(), *books.reservations.changed.values())
    now = sum(row.reserved_microcredits for row in rows if row.state is ReservationState.ACTIVE)
    changed = books.reservations.changed  # each was ACTIVE
    return now - sum(before.reservations[reservation_id].reserved_microcredits for reservation_id in changed)


def _grant_changes(
    books: Books, before: Before, set_aside: Mapping[GrantKey, int]
) -> tuple[list[Columns], list[Columns]]:
    """Of grants that were there, and of which more changed than how their credit is divided.

    Apart from the others those that perhaps have, or had, nothing unspent: at least nothing remains of them.
    """
    partly: list[Columns] = []
    wholly: list[Columns] = []
    for key in {**books.grants.changed, **set_aside}:
        was = before.grants.get(key)
        if was is None:
            continue
        grant = books.grants.rows[key]
        spent = was.remaining_microcredits - grant.remaining_microcredits - set_aside.get(key, 0)
        amount, reverse_time_us = grant.amount_microcredits, grant.reverse_time_us
        if spent or amount != was.amount_microcredits or reverse_time_us != was.reverse_time_us:
            rows = partly if was.remaining_microcredits and grant.remaining_microcredits else wholly
            rows.append((-spent, amount, reverse_time_us, *key))
    return partly, wholly


def _authorization_changes(books: Books, before: Before) -> list[Columns]:
    """Of authorizations of which more changed than what is reserved."""
    return [
        (row.charged_microcredits, authorization_id)
        for authorization_id, row in books.authorizations.changed.items()
        if row.charged_microcredits != before.authorizations[authorization_id].charged_microcredits
    ]


def _account_day(moved: tuple[AccountDayKey, tuple[int, int]]) -> Columns:
    (account, day), (debited, credited) = moved
    return (account, day, *divmod(debited, MICROCREDITS_PER_CREDIT), *divmod(credited, MICROCREDITS_PER_CREDIT))

"""Loads every row that a batch of operations touches, set-based: a few statements, whatever the batch's size."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from metergate.core.batches import Operation
from metergate.core.books import Books, CorrectionKey, GrantKey, RequestKey
from metergate.core.grants import is_expired, origin_of, refund_grant_id_range, rollover_grant_id
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Expire,
    Recover,
    Refund,
    Reserve,
    Reverse,
    RevokeAuthorization,
    Settle,
    SetWalletState,
)
from metergate.core.reservation import Reservation
from metergate.stores.sqlite import codec, derived
from metergate.stores.sqlite.open_rows import OpenRows
from metergate.stores.sqlite.request_filter import RequestFilter

Row = TypeVar("Row")


def _select(table: str, columns: str, condition: str, index: str = "") -> str:
    """Rows of a table for each value of a JSON array; ``index`` where the planner may not see the best one."""
    source = f"json_each(?) AS wanted CROSS JOIN {table} {index and f'INDEXED BY {index}'}"
    read = columns if f"{table}." in columns else derived.qualified(table, columns)
    return f"SELECT {read} FROM {source} WHERE {condition}"  # noqa: S608 - constants only


RESERVATIONS_BY_ID = _select("reservations", codec.RESERVATION, "reservations.reservation_id = wanted.value")
RESERVATIONS_ACTIVE = _select(
    "reservations",
    codec.RESERVATION,
    """reservations.subscriber_id = wanted.value ->> 0 AND reservations.authorization_id = wanted.value ->> 1
        AND reservations.request_id = wanted.value ->> 2 AND reservations.state = 'ACTIVE'""",
    index="reservations_active",
)
CHARGES_BY_ID = _select("charges", codec.CHARGE, "charges.charge_id = wanted.value")
CHARGES_BY_REQUEST = _select(
    "charges",
    codec.CHARGE,
    """charges.subscriber_id = wanted.value ->> 0 AND charges.authorization_id = wanted.value ->> 1
        AND charges.request_id = wanted.value ->> 2""",
)
CHARGES_BY_RESERVATION = _select("charges", codec.CHARGE, "charges.reservation_id = wanted.value")
WALLETS = _select("wallets", codec.WALLET, "wallets.subscriber_id = wanted.value")
AUTHORIZATIONS_BY_ID = _select(
    "authorizations", derived.AUTHORIZATION_READ, "authorizations.authorization_id = wanted.value"
)
AUTHORIZATIONS_RESERVED = _select(
    "authorizations",
    derived.AUTHORIZATION_READ,
    """authorizations.subscriber_id = wanted.value AND EXISTS (
        SELECT 1 FROM reservations AS open INDEXED BY reservations_active
        WHERE open.state = 'ACTIVE' AND open.subscriber_id = authorizations.subscriber_id
            AND open.authorization_id = authorizations.authorization_id
    )""",
)
GRANTS_WITH_CREDIT = _select(
    "grants",
    derived.GRANT_READ,
    "grants.subscriber_id = wanted.value AND grants.is_spent = 0 AND grants.unspent_microcredits > 0",
    index="grants_with_credit",
)
GRANTS_BY_ID = _select(
    "grants", derived.GRANT_READ, "grants.subscriber_id = wanted.value ->> 0 AND grants.grant_id = wanted.value ->> 1"
)
# Ids of a range, all grants that it names.
GRANTS_BETWEEN = _select(
    "grants",
    derived.GRANT_READ,
    "grants.subscriber_id = wanted.value ->> 0 "
    "AND grants.grant_id >= wanted.value ->> 1 AND grants.grant_id < wanted.value ->> 2",
    index="grants_by_id",
)
LOST_BY_GRANT = """
    SELECT transfers.subscriber_id, transfers.grant_id, sum(transfers.amount_microcredits)
    FROM json_each(?) AS wanted CROSS JOIN transfers INDEXED BY transfers_lost
    WHERE transfers.subscriber_id = wanted.value ->> 0 AND transfers.grant_id = wanted.value ->> 1
        AND transfers.credit_account IN ('breakage', 'goodwill')
    GROUP BY transfers.subscriber_id, transfers.grant_id
"""
CORRECTIONS_BY_ID = _select(
    "corrections",
    codec.CORRECTION,
    "corrections.subscriber_id = wanted.value ->> 0 AND corrections.correction_id = wanted.value ->> 1",
)
REFUNDS_BY_CHARGE = _select(
    "corrections",
    codec.CORRECTION,
    "corrections.charge_id = wanted.value AND corrections.charge_id <> ''",
    index="corrections_by_charge",
)


class Loader:
    """One batch's loading. What the writer remembers (``kept``) is not read again."""

    def __init__(self, connection: sqlite3.Connection, kept: OpenRows, charged: RequestFilter | None) -> None:
        """``charged`` tells which requests' charges need not be read; None: of all they are."""
        self._connection = connection
        self._charged = charged
        self._kept = kept
        self._subscribers: set[str] = set()
        self._authorizations: set[str] = set()
        self._grants: set[GrantKey] = set()
        self._corrections: set[CorrectionKey] = set()
        self._refunded: set[str] = set()  # charges of which something is refunded
        self._reversed: set[GrantKey] = set()
        self._granted: set[str] = set()  # subscribers whose whole wallet must be summed up

    def load(self, operations: Sequence[Operation]) -> Books:
        """The books that ``Ledger`` needs to decide the operations."""
        books = Books()
        self._load_reservations(books, operations)
        for operation in operations:
            self._note(books, operation)
        self._load_corrections(books)
        self._load_payers(books)
        self._load_rollovers(books, operations)
        self._load_reversed(books)
        self._load_charges(books, operations)
        return books

    # --- reservations -----------------------------------------------------------------------------------------------

    def _load_reservations(self, books: Books, operations: Sequence[Operation]) -> None:
        """Those that are named, and those under which requests run. Whether a charge's id is new, its index knows."""
        unknown: set[str] = set()
        requests: set[RequestKey] = set()
        for operation in operations:
            if isinstance(operation, Reserve):
                key = _request_of(operation)
                if not self._recall_reservation(books, self._kept.active(key)) and not self._kept.are_all:
                    requests.add(key)
            elif not isinstance(operation, (Capture, Settle, Recover)):
                continue
            if not self._recall_reservation(books, self._kept.reservations.get(operation.reservation_id)):
                unknown.add(operation.reservation_id)
        for select, wanted in ((RESERVATIONS_BY_ID, unknown), (RESERVATIONS_ACTIVE, requests)):
            for row in self._rows(select, wanted, codec.reservation):
                if row.reservation_id not in books.reservations.rows:
                    books.load_reservation(self._kept.reservations.get(row.reservation_id, row))

    def _recall_reservation(self, books: Books, row: Reservation | None) -> bool:
        """Put a remembered reservation in the books; whether there is one."""
        if row is not None and row.reservation_id not in books.reservations.rows:
            books.load_reservation(row)
        return row is not None

    # --- what each operation touches --------------------------------------------------------------------------------

    def _note(self, books: Books, operation: Operation) -> None:
        match operation:
            case Capture():
                row = books.reservations.get(operation.reservation_id)
                wanted = max(operation.wanted_microcredits, operation.target_microcredits)
                if row is not None and wanted > row.reserved_microcredits:
                    self._note_reservation(row)
            case Settle() | Recover():
                row = books.reservations.get(operation.reservation_id)
                if row is not None:
                    self._note_reservation(row)
            case Reserve():
                self._subscribers.add(operation.subscriber_id)
                self._authorizations.add(operation.authorization_id)
            case AddGrant(grant=grant):
                self._subscribers.add(grant.subscriber_id)
                self._grants.add((grant.subscriber_id, grant.grant_id))
                self._granted.add(grant.subscriber_id)
            case Expire(subscriber_id=subscriber_id):
                self._subscribers.add(subscriber_id)
            case AddSubscriber() | AddAuthorization() | RevokeAuthorization():
                self._note_set_up(operation)
            case Refund() | Adjust() | Reverse() | SetWalletState():
                self._note_correction(operation)

    def _note_set_up(self, operation: AddSubscriber | AddAuthorization | RevokeAuthorization) -> None:
        match operation:
            case AddSubscriber(wallet=wallet):
                self._subscribers.add(wallet.subscriber_id)
            case AddAuthorization(authorization=authorization):
                self._subscribers.add(authorization.subscriber_id)
                self._authorizations.add(authorization.authorization_id)
            case RevokeAuthorization():
                self._authorizations.add(operation.authorization_id)

    def _note_correction(self, operation: Refund | Adjust | Reverse | SetWalletState) -> None:
        subscriber_id = operation.subscriber_id
        self._subscribers.add(subscriber_id)
        self._corrections.add((subscriber_id, operation.correction_id))
        if isinstance(operation, Refund | Adjust):
            self._granted.add(subscriber_id)
        if isinstance(operation, Refund):
            self._refunded.add(operation.charge_id)
        if isinstance(operation, Reverse):
            grant_ids = (operation.grant_id, rollover_grant_id(operation.grant_id))
            self._grants.update((subscriber_id, grant_id) for grant_id in grant_ids)
            self._reversed.add((subscriber_id, operation.grant_id))

    def _note_reservation(self, row: Reservation) -> None:
        self._subscribers.add(row.subscriber_id)
        self._authorizations.add(row.authorization_id)
        self._grants.update((row.subscriber_id, part.grant_id) for part in row.allocations)

    # --- corrections ------------------------------------------------------------------------------------------------

    def _load_corrections(self, books: Books) -> None:
        """Corrections made before, and what a refund goes back to."""
        for select, keys in ((CORRECTIONS_BY_ID, self._corrections), (REFUNDS_BY_CHARGE, self._refunded)):
            for correction in self._rows(select, keys, codec.correction):
                books.load_correction(correction)
        for charge in self._rows(CHARGES_BY_ID, self._refunded, codec.charge):
            books.load_charge(charge)
            self._authorizations.add(charge.authorization_id)
            self._grants.update((charge.subscriber_id, part.grant_id) for part in charge.allocations)

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _load_payers(self, books: Books) -> None:
        unknown = [subscriber_id for subscriber_id in self._subscribers if not self._recall(books, subscriber_id)]
        for wallet in self._rows(WALLETS, unknown, codec.wallet):
            books.wallets.rows[wallet.subscriber_id] = wallet
        authorization_ids = self._authorizations.difference(books.authorizations.rows)
        for select, wanted in ((AUTHORIZATIONS_BY_ID, authorization_ids), (AUTHORIZATIONS_RESERVED, self._granted)):
            for authorization in self._rows(select, wanted, codec.authorization):
                books.authorizations.rows.setdefault(authorization.authorization_id, authorization)
        self._load_grants(books, GRANTS_WITH_CREDIT, unknown)
        self._load_grants(books, GRANTS_BY_ID, self._grants.difference(books.grants.rows))

    def _recall(self, books: Books, subscriber_id: str) -> bool:
        """Put what is remembered of a subscriber in the books; whether anything is."""
        payer = self._kept.payers.get(subscriber_id)
        if payer is None:
            return False
        books.wallets.rows[subscriber_id] = payer.wallet
        books.authorizations.rows.update(payer.authorizations)
        for grant in payer.grants.values():
            books.load_grant(grant)
        return True

    def _load_grants(self, books: Books, select: str, wanted: Collection[object]) -> None:
        for grant in self._rows(select, wanted, codec.grant):
            if (grant.subscriber_id, grant.grant_id) not in books.grants.rows:
                books.load_grant(grant)

    def _load_rollovers(self, books: Books, operations: Sequence[Operation]) -> None:
        """The rollover grants of those that are over by the latest of the batch's times: what comes back goes there."""
        ruled = [grant for grant in books.grants.rows.values() if grant.rollover_microcredits_max > 0]
        if not ruled:
            return
        now_us = max(map(_time_of, operations))
        expired = [grant for grant in ruled if is_expired(grant, now_us)]
        wanted = [(grant.subscriber_id, rollover_grant_id(grant.grant_id)) for grant in expired]
        self._load_grants(books, GRANTS_BY_ID, wanted)

    def _load_reversed(self, books: Books) -> None:
        """What carries on the credit of grants that are to be reversed, and what nobody spent of all these."""
        ranges = [(subscriber_id, *refund_grant_id_range(grant_id)) for subscriber_id, grant_id in self._reversed]
        self._load_grants(books, GRANTS_BETWEEN, ranges)
        carriers = [key for key in books.grants.rows if (key[0], origin_of(key[1])) in self._reversed]
        for subscriber_id, grant_id, lost in self._rows(LOST_BY_GRANT, carriers, tuple):
            books.load_lost((subscriber_id, grant_id), lost)

    def _load_charges(self, books: Books, operations: Sequence[Operation]) -> None:
        """Of requests that are asked for again, and of reservations that are closed."""
        requests: Collection[RequestKey]
        requests = {_request_of(operation) for operation in operations if isinstance(operation, Reserve)}
        if self._charged is not None:
            requests = self._charged.perhaps_charged(requests)
        for charge in self._rows(CHARGES_BY_REQUEST, requests, codec.charge):
            books.load_charge(charge)
        closed = [row.reservation_id for row in books.reservations.rows.values() if row.close_cause is not None]
        for charge in self._rows(CHARGES_BY_RESERVATION, closed, codec.charge):
            books.load_charge(charge)

    def _rows(self, select: str, wanted: Collection[Any], decode: Callable[[tuple[Any, ...]], Row]) -> Iterable[Row]:
        if not wanted:
            return ()
        in_order = sorted(wanted)  # as they are stored: neighbours are found on the same pages
        return [decode(columns) for columns in self._connection.execute(select, (codec.to_json(in_order),))]


def _request_of(operation: Reserve) -> RequestKey:
    return (operation.subscriber_id, operation.authorization_id, operation.request_id)


def _time_of(operation: Operation) -> int:
    """When the operation was asked for: what has expired by then moves."""
    match operation:
        case AddGrant(grant=grant):
            return grant.create_time_us
        case AddSubscriber() | AddAuthorization():
            return 0
        case _:
            return operation.now_us

"""The rows that a batch of operations was loaded with, and which of them it added or changed.

A store loads every row that the batch touches, lets the ledger decide, and writes each table's ``added`` and
``changed`` rows as they finally are, set-based.
"""

from typing import Generic, TypeVar

from metergate.core.changes import changed
from metergate.core.reservation import Reservation, ReservationState
from metergate.core.rows import (
    BREAKAGE_ACCOUNT,
    GOODWILL_ACCOUNT,
    Authorization,
    Charge,
    Correction,
    Grant,
    Transfer,
    TransferKind,
    Wallet,
    terms_of,
)

Key = TypeVar("Key")
Row = TypeVar("Row")

RequestKey = tuple[str, str, str]  # subscriber_id, authorization_id, request_id
GrantKey = tuple[str, str]  # subscriber_id, grant_id
CorrectionKey = tuple[str, str]  # subscriber_id, correction_id

# Where credit goes that nobody spent: what expired, and what was taken by hand.
LOST_TO = frozenset({BREAKAGE_ACCOUNT, GOODWILL_ACCOUNT})


class Table(Generic[Key, Row]):
    """Rows by key."""

    __slots__ = ("added", "changed", "rows")

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}  # as they are now
        self.added: dict[Key, Row] = {}  # those that were not loaded
        self.changed: dict[Key, Row] = {}  # those that were loaded and differ now

    def get(self, key: Key) -> Row | None:
        """The row as it is now, or None."""
        return self.rows.get(key)

    def add(self, key: Key, row: Row) -> None:
        """Put a row where none was."""
        assert key not in self.rows, key
        self.rows[key] = self.added[key] = row

    def change(self, key: Key, row: Row) -> None:
        """Put a row in the place of another."""
        self.rows[key] = row
        if key in self.added:
            self.added[key] = row
        else:
            self.changed[key] = row

    def mark_stored(self) -> None:
        """What was added and changed is stored: the rows are as if loaded."""
        self.added.clear()
        self.changed.clear()


class Books:
    """Rows with the indexes that decisions need. ``load_*`` puts in what the store holds already."""

    def __init__(self) -> None:
        self.wallets: Table[str, Wallet] = Table()
        self.grants: Table[GrantKey, Grant] = Table()
        self.authorizations: Table[str, Authorization] = Table()
        self.reservations: Table[str, Reservation] = Table()
        self.charges: Table[str, Charge] = Table()
        self.corrections: Table[CorrectionKey, Correction] = Table()
        self.transfers: list[Transfer] = []  # all new, in order
        self._grant_keys: dict[str, list[GrantKey]] = {}  # by subscriber
        self._active: dict[RequestKey, str] = {}  # reservation ids
        self._charged: dict[RequestKey, str] = {}  # charge ids
        self._charge_of: dict[str, str] = {}  # charge ids by reservation id
        self._refunds: dict[str, list[CorrectionKey]] = {}  # by charge
        self._lost: dict[GrantKey, int] = {}  # microcredits

    # --- loading ----------------------------------------------------------------------------------------------------

    def load_grant(self, grant: Grant) -> None:
        """A stored grant."""
        self.grants.rows[(grant.subscriber_id, grant.grant_id)] = grant
        self._index_grant(grant)

    def load_reservation(self, reservation: Reservation) -> None:
        """A stored reservation."""
        self.reservations.rows[reservation.reservation_id] = reservation
        self._index_reservation(reservation)

    def load_charge(self, charge: Charge) -> None:
        """A stored charge."""
        self.charges.rows[charge.charge_id] = charge
        self._index_charge(charge)

    def load_correction(self, correction: Correction) -> None:
        """A stored correction; twice is harmless."""
        key = (correction.subscriber_id, correction.correction_id)
        if key not in self.corrections.rows:
            self.corrections.rows[key] = correction
            self._index_correction(correction)

    def load_lost(self, key: GrantKey, microcredits: int) -> None:
        """What went from a grant to LOST_TO by stored transfers."""
        self._lost[key] = self._lost.get(key, 0) + microcredits

    # --- looking up -------------------------------------------------------------------------------------------------

    def grants_of(self, subscriber_id: str) -> list[Grant]:
        """The loaded grants of a subscriber: at least all that have credit left."""
        return [self.grants.rows[key] for key in self._grant_keys.get(subscriber_id, ())]

    def active_reservation(self, key: RequestKey) -> Reservation | None:
        """The reservation under which the request runs now."""
        reservation_id = self._active.get(key)
        return None if reservation_id is None else self.reservations.get(reservation_id)

    def charge_of_request(self, key: RequestKey) -> Charge | None:
        """The charge of a request that was charged before."""
        charge_id = self._charged.get(key)
        return None if charge_id is None else self.charges.get(charge_id)

    def charge_of_reservation(self, reservation_id: str) -> Charge | None:
        """The charge of a settled reservation."""
        charge_id = self._charge_of.get(reservation_id)
        return None if charge_id is None else self.charges.get(charge_id)

    def refunded_microcredits(self, charge_id: str) -> int:
        """What was refunded of a charge, whose refunds are all loaded."""
        return sum(self.corrections.rows[key].amount_microcredits for key in self._refunds.get(charge_id, ()))

    def lost_microcredits(self, key: GrantKey) -> int:
        """What of a grant nobody spent and nobody can; of one that is to be reversed it is loaded."""
        return self._lost.get(key, 0)

    # --- changing ---------------------------------------------------------------------------------------------------

    def add_grant(self, grant: Grant) -> None:
        """A new grant."""
        self.grants.add((grant.subscriber_id, grant.grant_id), grant)
        self._index_grant(grant)

    def change_remaining(self, subscriber_id: str, grant_id: str, by_microcredits: int) -> Grant:
        """Move what remains of a grant up or down; returns the grant after it."""
        key = (subscriber_id, grant_id)
        grant = self.grants.rows[key]
        after = changed(grant, remaining_microcredits=grant.remaining_microcredits + by_microcredits)
        assert 0 <= after.remaining_microcredits <= after.amount_microcredits, after
        self.grants.change(key, after)
        return after

    def grow_grant(self, subscriber_id: str, grant_id: str, by_microcredits: int) -> None:
        """Add to a grant after it was made: amount and remaining."""
        key = (subscriber_id, grant_id)
        grant = self.grants.rows[key]
        after = changed(
            grant,
            amount_microcredits=grant.amount_microcredits + by_microcredits,
            remaining_microcredits=grant.remaining_microcredits + by_microcredits,
        )
        self.grants.change(key, after)

    def add_reservation(self, reservation: Reservation) -> None:
        """A new reservation."""
        self.reservations.add(reservation.reservation_id, reservation)
        self._index_reservation(reservation)

    def close_reservation(self, reservation: Reservation) -> None:
        """The closed row in the place of the active one."""
        self.reservations.change(reservation.reservation_id, reservation)
        del self._active[request_key(reservation)]

    def add_charge(self, charge: Charge) -> None:
        """A new charge."""
        self.charges.add(charge.charge_id, charge)
        self._index_charge(charge)

    def add_correction(self, correction: Correction) -> None:
        """A new correction."""
        self.corrections.add((correction.subscriber_id, correction.correction_id), correction)
        self._index_correction(correction)

    def post(
        self,
        kind: TransferKind,
        *,
        subscriber_id: str,
        debit_account: str,
        credit_account: str,
        amount_microcredits: int,
        grant_id: str,
        now_us: int,
        charge_id: str = "",
        correction_id: str = "",
        added_grant: Grant | None = None,
    ) -> None:
        """A new transfer, next in the subscriber's sequence; ``added_grant`` is the one that it makes or grows."""
        assert amount_microcredits > 0, amount_microcredits
        wallet = self.wallets.rows[subscriber_id]
        sequence = wallet.sequence + 1
        self.wallets.change(subscriber_id, changed(wallet, sequence=sequence))
        if credit_account in LOST_TO:
            self.load_lost((subscriber_id, grant_id), amount_microcredits)
        self.transfers.append(
            Transfer(
                subscriber_id=subscriber_id,
                sequence=sequence,
                kind=kind,
                debit_account=debit_account,
                credit_account=credit_account,
                amount_microcredits=amount_microcredits,
                grant_id=grant_id,
                charge_id=charge_id,
                create_time_us=now_us,
                correction_id=correction_id,
                grant_expire_time_us=None if added_grant is None else added_grant.expire_time_us,
                grant_terms=None if added_grant is None else terms_of(added_grant),
            )
        )

    def mark_stored(self) -> None:
        """Everything so far is stored."""
        tables = (self.wallets, self.grants, self.authorizations, self.reservations, self.charges, self.corrections)
        for table in tables:
            table.mark_stored()
        self.transfers = []

    # --- indexes ----------------------------------------------------------------------------------------------------

    def _index_grant(self, grant: Grant) -> None:
        self._grant_keys.setdefault(grant.subscriber_id, []).append((grant.subscriber_id, grant.grant_id))

    def _index_reservation(self, reservation: Reservation) -> None:
        if reservation.state is ReservationState.ACTIVE:
            self._active[request_key(reservation)] = reservation.reservation_id

    def _index_charge(self, charge: Charge) -> None:
        self._charged[request_key(charge)] = charge.charge_id
        self._charge_of[charge.reservation_id] = charge.charge_id

    def _index_correction(self, correction: Correction) -> None:
        if correction.charge_id:
            key = (correction.subscriber_id, correction.correction_id)
            self._refunds.setdefault(correction.charge_id, []).append(key)


def request_key(row: Reservation | Charge) -> RequestKey:
    """What identifies the request that a reservation or a charge is of."""
    return (row.subscriber_id, row.authorization_id, row.request_id)

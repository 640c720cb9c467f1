"""Stand-ins that keep every promise of the ports they implement, in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from metergate.core.audit import SubscriberLedger
from metergate.core.books import Books, request_key
from metergate.core.errors import IdConflict, RequestInvalid, ResourceNotFound, StoreUnavailable, Violation
from metergate.core.grants import is_expired
from metergate.core.ledger import Ledger, Operation, Outcome
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    Expire,
    Recover,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.postings import available, spendable
from metergate.core.rating import RateCard
from metergate.core.reservation import Owner, Reservation, ReservationState
from metergate.core.rows import ApiKey, Authorization, Charge, Correction, Grant, Transfer, Wallet
from metergate.core.set_up import check_key
from metergate.ports import (
    Balance,
    ChargeFilter,
    Grantee,
    Page,
    TransferFilter,
)

Row = TypeVar("Row")


class FakeClock:
    """A clock that stands still until it is set."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.time_us = now_us

    def now_us(self) -> int:
        """The time that was set."""
        return self.time_us

    def advance(self, by_us: int) -> None:
        """Move it; a negative number moves it back."""
        self.time_us += by_us


class MemoryLedgerStore:
    """The pure ledger over dicts: a LedgerStore of one process that forgets everything.

    ``log`` holds every operation that was committed and its outcome, in order. ``fail_next`` makes that many next
    operations fail: before they are carried out, or, with ``after_commit``, after (their outcome is then unknown to
    the caller, as with a connection that broke). Every operation yields to the event loop once, as a commit would.
    """

    def __init__(self, *, clock: FakeClock | None = None, owner_id: str = "gateway-1") -> None:
        self.clock = clock or FakeClock()
        self.books = Books()
        self.log: list[tuple[Operation, Outcome]] = []
        self._ledger = Ledger(self.books)
        self._owner = Owner(owner_id=owner_id, epoch=1)
        self._transfers: list[Transfer] = []
        self._keys: dict[str, ApiKey] = {}
        self._cards: dict[str, RateCard] = {}
        self._successes = 0
        self._failures = 0
        self._is_finished = False  # an operation failed: the next one opens the store again
        self._fails_after_commit = False
        self._recoveries = 0
        self._swept: set[tuple[str, str]] = set()  # grants

    # --- faults -----------------------------------------------------------------------------------------------------

    def fail_next(self, operations: int, *, skip: int = 0, after_commit: bool = False) -> None:
        """Make the next writing operations raise StoreUnavailable, after ``skip`` that succeed."""
        self._successes = skip
        self._failures = operations
        self._fails_after_commit = after_commit

    def restart(self) -> None:
        """As if the process died and the store was opened again: a new epoch, and recovery of the old one's."""
        self._is_finished = False
        self._owner = replace(self._owner, epoch=self._owner.epoch + 1)
        for reservation in sorted(self.open_reservations(), key=request_key):  # the order that SQLite finds them in
            self._recoveries += 1
            self._commit(
                Recover(
                    reservation_id=reservation.reservation_id,
                    subscriber_id=reservation.subscriber_id,
                    charge_id=f"recovered-{self._recoveries}",
                    survivor=self._owner,
                    now_us=self.clock.now_us(),
                )
            )

    def open_reservations(self) -> list[Reservation]:
        """All that are ACTIVE."""
        return [row for row in self.books.reservations.rows.values() if row.state is ReservationState.ACTIVE]

    # --- LedgerStore: writing ---------------------------------------------------------------------------------------

    @property
    def owner(self) -> Owner:
        return self._owner

    @property
    def content_key(self) -> bytes:
        return b"k" * 32

    async def check(self) -> None:
        if self._failures > 0 and self._successes == 0:
            raise StoreUnavailable

    async def close(self) -> None:
        return None

    async def reserve(self, operation: Reserve) -> Reserved | Replayed:
        if operation.owner != self._owner:
            raise StoreUnavailable
        outcome = await self._run(operation)
        assert isinstance(outcome, Reserved | Replayed)
        return outcome

    async def capture(self, operation: Capture) -> Captured:
        outcome = await self._run(operation)
        assert isinstance(outcome, Captured)
        return outcome

    async def settle(self, operation: Settle) -> Settled:
        outcome = await self._run(operation)
        assert isinstance(outcome, Settled)
        return outcome

    async def add_grant(self, operation: AddGrant) -> Grant:
        outcome = await self._run(operation)
        assert isinstance(outcome, Grant)
        return outcome

    async def expire_grants(self, now_us: int, limit: int) -> int:
        rows = self.books.grants.rows
        over = [key for key, grant in rows.items() if is_expired(grant, now_us) and key not in self._swept]
        over = sorted(over, key=lambda key: rows[key].expire_time_us or 0)[:limit]
        for subscriber_id in dict.fromkeys(subscriber_id for subscriber_id, _ in over):
            await self._run(Expire(subscriber_id=subscriber_id, now_us=now_us))
        self._swept.update(over)
        return len(over)

    async def refund(self, operation: Refund) -> Correction:
        return await self._correct(operation)

    async def adjust(self, operation: Adjust) -> Correction:
        return await self._correct(operation)

    async def reverse(self, operation: Reverse) -> Correction:
        return await self._correct(operation)

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        return await self._correct(operation)

    async def _correct(self, operation: Refund | Adjust | Reverse | SetWalletState) -> Correction:
        outcome = await self._run(operation)
        assert isinstance(outcome, Correction)
        return outcome

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        outcome = await self._run(operation)
        assert isinstance(outcome, Wallet)
        return outcome

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        outcome = await self._run(operation)
        assert isinstance(outcome, Authorization)
        return outcome

    async def add_key(self, key: ApiKey) -> ApiKey:
        if key.authorization_id not in self.books.authorizations.rows:
            raise ResourceNotFound(resource_name=f"authorizations/{key.authorization_id}")
        if any(other.secret_hash == key.secret_hash and other.key_id != key.key_id for other in self._keys.values()):
            raise IdConflict(resource="key", id=key.key_id)
        if key.key_id not in self._keys:
            check_key(key)
        first = self._keys.setdefault(key.key_id, key)
        if (first.secret_hash, first.authorization_id) != (key.secret_hash, key.authorization_id):
            raise IdConflict(resource="key", id=key.key_id)
        return first

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        key = self._keys.get(key_id)
        if key is None:
            raise ResourceNotFound(resource_name=f"keys/{key_id}")
        if key.revoke_time_us is None:
            key = self._keys[key_id] = replace(key, revoke_time_us=now_us)
        return key

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        for key_id, use_time_us in use_times_us.items():
            key = self._keys.get(key_id)
            if key is not None and (key.last_used_time_us or 0) < use_time_us:
                self._keys[key_id] = replace(key, last_used_time_us=use_time_us)

    async def add_rate_cards(self, cards: Sequence[RateCard]) -> None:
        for card in cards:
            if self._cards.get(card.rate_card_id, card) != card:
                raise IdConflict(resource="rate card", id=card.rate_card_id)
        self._cards.update({card.rate_card_id: card for card in cards})

    # --- LedgerStore: reading ---------------------------------------------------------------------------------------

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        key = next((key for key in self._keys.values() if key.secret_hash == secret_hash), None)
        if key is None:
            return None
        return Grantee(key=key, authorization=self.books.authorizations.rows[key.authorization_id])

    async def list_keys(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grantee]:
        authorizations = self.books.authorizations.rows
        grantees = [
            Grantee(key=key, authorization=authorizations[key.authorization_id])
            for key in sorted(self._keys.values(), key=lambda key: key.key_id)
            if authorizations[key.authorization_id].subscriber_id == subscriber_id and key.key_id > (cursor or "")
        ]
        return Page(
            rows=tuple(grantees[:size]), next_cursor=grantees[size - 1].key.key_id if len(grantees) > size else None
        )

    async def balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        wallet = self.books.wallets.get(subscriber_id)
        if wallet is None:
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}")
        credit = available(self.books, subscriber_id, now_us)
        authorization = self.books.authorizations.get(authorization_id) if authorization_id is not None else None
        if authorization_id is not None and (authorization is None or authorization.subscriber_id != subscriber_id):
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/authorizations/{authorization_id}")
        mine = [row for row in self.open_reservations() if row.subscriber_id == subscriber_id]
        return Balance(
            wallet=wallet,
            available_microcredits=credit,
            reserved_microcredits=sum(row.reserved_microcredits for row in mine),
            spendable_microcredits=credit if authorization is None else spendable(wallet, authorization, credit),
        )

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        return _page(self.books.grants_of(subscriber_id), cursor, size)

    async def list_corrections(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Correction]:
        corrections = [row for row in self.books.corrections.rows.values() if row.subscriber_id == subscriber_id]
        return _page(corrections, cursor, size)

    async def list_charges(
        self, subscriber_id: str, where: ChargeFilter, *, cursor: str | None, size: int
    ) -> Page[Charge]:
        charges = [row for row in self.books.charges.rows.values() if row.subscriber_id == subscriber_id]
        return _page([row for row in charges if _charge_matches(row, where)], cursor, size)

    async def get_charge(self, subscriber_id: str, charge_id: str) -> Charge:
        charge = self.books.charges.get(charge_id)
        if charge is None or charge.subscriber_id != subscriber_id:
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/charges/{charge_id}")
        return charge

    async def list_transfers(
        self, subscriber_id: str, where: TransferFilter, *, cursor: str | None, size: int
    ) -> Page[Transfer]:
        transfers = [row for row in self._transfers if row.subscriber_id == subscriber_id]
        return _page([row for row in transfers if self._transfer_matches(row, where)], cursor, size)

    # --- LedgerStore: audit -----------------------------------------------------------------------------------------

    async def count_subscribers(self) -> int:
        return len(self.books.wallets.rows)

    async def audit(self) -> AsyncIterator[SubscriberLedger]:
        for wallet in tuple(self.books.wallets.rows.values()):
            mine = wallet.subscriber_id
            charges = [row for row in self.books.charges.rows.values() if row.subscriber_id == mine]
            reservations = [row for row in self.books.reservations.rows.values() if row.subscriber_id == mine]
            settled = {row.reservation_id for row in reservations if row.state is ReservationState.SETTLED}
            charged = {row.reservation_id for row in charges}
            yield SubscriberLedger(
                wallet=wallet,
                rate_cards=self._cards,
                grants=tuple(self.books.grants_of(mine)),
                authorizations=tuple(r for r in self.books.authorizations.rows.values() if r.subscriber_id == mine),
                open_reservations=tuple(row for row in reservations if row.state is ReservationState.ACTIVE),
                settled_reservation_ids_without_charge=tuple(sorted(settled - charged)),
                closed_reservation_ids_with_allocations=tuple(
                    row.reservation_id
                    for row in reservations
                    if row.state is not ReservationState.ACTIVE and row.allocations
                ),
                charge_ids_without_settled_reservation=tuple(
                    row.charge_id for row in charges if row.reservation_id not in settled
                ),
                charge_ids_refunded_too_much=tuple(
                    row.charge_id
                    for row in charges
                    if self.books.refunded_microcredits(row.charge_id) > row.charged_microcredits
                ),
                refunded_microcredits=_refunded(charges, self.books),
                charges=_aiter(charges),
                corrections=_aiter([row for row in self.books.corrections.rows.values() if row.subscriber_id == mine]),
                transfers=_aiter([row for row in self._transfers if row.subscriber_id == mine]),
            )

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _run(self, operation: Operation) -> Outcome:
        if self._is_finished:
            self.restart()
        fails = self._failures > 0 and self._successes == 0
        if fails:
            self._failures -= 1
            self._is_finished = True
        self._successes = max(0, self._successes - 1)
        if fails and not self._fails_after_commit:
            await asyncio.sleep(0)
            raise StoreUnavailable
        outcome = self._commit(operation)
        await asyncio.sleep(0)
        if fails:
            raise StoreUnavailable
        return outcome

    def _commit(self, operation: Operation) -> Outcome:
        outcome = self._ledger.decide(operation)
        self._transfers.extend(self.books.transfers)
        self.books.mark_stored()
        self.log.append((operation, outcome))
        return outcome

    def _transfer_matches(self, transfer: Transfer, where: TransferFilter) -> bool:
        charge = self.books.charges.get(transfer.charge_id)
        return (
            (where.app_id is None or (charge is not None and charge.app_id == where.app_id))
            and (where.model_id is None or (charge is not None and charge.model_id == where.model_id))
            and (where.create_time_us_min is None or transfer.create_time_us >= where.create_time_us_min)
            and (where.create_time_us_max is None or transfer.create_time_us < where.create_time_us_max)
        )


def _charge_matches(charge: Charge, where: ChargeFilter) -> bool:
    return (
        (where.authorization_id is None or charge.authorization_id == where.authorization_id)
        and (where.app_id is None or charge.app_id == where.app_id)
        and (where.model_id is None or charge.model_id == where.model_id)
        and (where.settle_time_us_min is None or charge.settle_time_us >= where.settle_time_us_min)
        and (where.settle_time_us_max is None or charge.settle_time_us < where.settle_time_us_max)
    )


def _refunded(charges: Iterable[Charge], books: Books) -> dict[str, int]:
    """Refunded microcredits by authorization."""
    refunded: dict[str, int] = {}
    for charge in charges:
        amount = books.refunded_microcredits(charge.charge_id)
        refunded[charge.authorization_id] = refunded.get(charge.authorization_id, 0) + amount
    return refunded


def _page(oldest_first: Sequence[Row], cursor: str | None, size: int) -> Page[Row]:
    """The newest rows below the cursor, which is a position in order of insertion."""
    if cursor is not None and not cursor.isdigit():
        raise RequestInvalid(Violation("page_token", "is not one that this service gave"))
    end = len(oldest_first) if cursor is None else int(cursor)
    start = max(0, end - size)
    return Page(rows=tuple(reversed(oldest_first[start:end])), next_cursor=str(start) if start > 0 else None)


async def _aiter(rows: Iterable[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row

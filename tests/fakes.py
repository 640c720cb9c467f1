"""Stand-ins that keep every promise of the ports they implement, in memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from metergate.core.accounts import DAY_US, AccountBalance, RollUp
from metergate.core.audit import ClosedProblem, ClosedReservation, SubscriberLedger
from metergate.core.batches import Operation, Outcome
from metergate.core.books import LOST_TO, Books, request_key
from metergate.core.erasing import ERASED_REASON, check_erasure, grant_pseudonyms, pseudonym
from metergate.core.errors import (
    AuthorizationRevoked,
    ChargesTooMany,
    IdConflict,
    LedgerInvariantBroken,
    RateCardServed,
    RequestInvalid,
    ReservationsOpen,
    ResourceNotFound,
    StoreUnavailable,
    Violation,
)
from metergate.core.grants import is_expired
from metergate.core.ledger import Ledger
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    EraseSubscriber,
    Expire,
    Recover,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    RevokeAuthorization,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.postings import available, spendable
from metergate.core.rating import RateCard
from metergate.core.reservation import CloseCause, Owner, Reservation, ReservationState
from metergate.core.rows import (
    ApiKey,
    Authorization,
    Charge,
    Correction,
    Erasure,
    Grant,
    Transfer,
    Wallet,
    grant_account,
)
from metergate.core.set_up import check_key
from metergate.core.times import MICROSECONDS_PER_DAY
from metergate.core.usage import CountingSource
from metergate.ports import (
    ALL_DAYS,
    Balance,
    ChargeFilter,
    Days,
    Grantee,
    Page,
    Recovery,
    Times,
    TransferFilter,
    UsageComparison,
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
        self.urgent_reservations: list[bool] = []
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
        self._pruned_before_us = 0
        self.erasures: dict[str, Erasure] = {}  # by pseudonym
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

    async def reserve(self, operation: Reserve, *, is_urgent: bool = True) -> Reserved | Replayed:
        self.urgent_reservations.append(is_urgent)
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

    async def recover_abandoned(self, is_running: Callable[[str], bool]) -> Recovery:
        rows = sorted(self.open_reservations(), key=request_key)  # the order that SQLite finds them in
        abandoned = [row for row in rows if not is_running(row.reservation_id)]
        stuck = 0
        for row in abandoned:
            self._recoveries += 1
            operation = Recover(
                reservation_id=row.reservation_id,
                subscriber_id=row.subscriber_id,
                charge_id=f"recovered-{self._recoveries}",
                survivor=None,
                now_us=self.clock.now_us(),
            )
            try:
                await self._run(operation)
            except LedgerInvariantBroken:
                stuck += 1
        return Recovery(settled=len(abandoned) - stuck, stuck=stuck)

    async def prune_reservations(self, closed_before_us: int, *, count_max: int) -> int:
        old = [
            row.reservation_id
            for row in self.books.reservations.rows.values()
            if row.close_time_us is not None and row.close_time_us < closed_before_us
        ][:count_max]
        for reservation_id in old:
            del self.books.reservations.rows[reservation_id]
        if old:
            self._pruned_before_us = max(self._pruned_before_us, closed_before_us)
        return len(old)

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

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        check_erasure(operation)
        old, new = operation.subscriber_id, operation.pseudonym
        if old not in self.books.wallets.rows:
            raise ResourceNotFound(resource_name=f"subscribers/{old}")
        running = sum(row.subscriber_id == old for row in self.open_reservations())
        if running:
            raise ReservationsOpen(subscriber_id=old, reservations=running)
        charges = sum(row.subscriber_id == old for row in self.books.charges.rows.values())
        if operation.charges_max is not None and charges > operation.charges_max:
            raise ChargesTooMany(subscriber_id=old, charges_max=operation.charges_max)
        self._forget(old, new)
        erasure = Erasure(
            subscriber_id=new,
            reason=operation.reason,
            actor=operation.actor,
            erase_time_us=operation.now_us,
            leaves_copies=False,
        )
        self.erasures[new] = erasure
        return erasure

    def _forget(self, old: str, new: str) -> None:
        """Books without the old id: made anew, as the indexes of the old ones have it."""
        before, self.books = self.books, Books()
        self._ledger = Ledger(self.books)
        mine = [row for row in before.corrections.rows.values() if row.subscriber_id == old]
        corrections = {row.correction_id: pseudonym(number) for number, row in enumerate(mine)}
        own = [row.grant_id for row in before.grants_of(old)]
        grants = {"": ""} | grant_pseudonyms(enumerate(own), corrections)
        accounts = {grant_account(name): grant_account(grants[name]) for name in own}
        gone = {row.authorization_id for row in before.authorizations.rows.values() if row.subscriber_id == old}
        self._keys = {name: key for name, key in self._keys.items() if key.authorization_id not in gone}
        for wallet in before.wallets.rows.values():
            renamed = replace(wallet, subscriber_id=new) if wallet.subscriber_id == old else wallet
            self.books.wallets.rows[renamed.subscriber_id] = renamed
        for grant in before.grants.rows.values():
            is_mine = grant.subscriber_id == old
            self.books.load_grant(
                replace(grant, subscriber_id=new, grant_id=grants[grant.grant_id]) if is_mine else grant
            )
        for authorization in before.authorizations.rows.values():
            if authorization.subscriber_id != old:
                self.books.authorizations.rows[authorization.authorization_id] = authorization
        for reservation in before.reservations.rows.values():
            if reservation.subscriber_id != old:
                self.books.load_reservation(reservation)
        for charge in before.charges.rows.values():
            self.books.load_charge(
                replace(
                    charge,
                    subscriber_id=new,
                    authorization_id=f"{new}-{charge.authorization_id in gone}",
                    request_id=charge.charge_id,
                    content_hash=b"",
                    allocations=tuple(replace(part, grant_id=grants[part.grant_id]) for part in charge.allocations),
                )
                if charge.subscriber_id == old
                else charge
            )
        for correction in before.corrections.rows.values():
            self.books.load_correction(
                replace(
                    correction,
                    subscriber_id=new,
                    correction_id=corrections[correction.correction_id],
                    grant_id=grants[correction.grant_id],
                    reason=ERASED_REASON,
                )
                if correction.subscriber_id == old
                else correction
            )
        self._transfers = [
            replace(
                row,
                subscriber_id=new,
                debit_account=accounts.get(row.debit_account, row.debit_account),
                credit_account=accounts.get(row.credit_account, row.credit_account),
                grant_id=grants[row.grant_id],
                correction_id=corrections.get(row.correction_id, ""),
            )
            if row.subscriber_id == old
            else row
            for row in self._transfers
        ]
        for row in (row for row in self._transfers if row.credit_account in LOST_TO):
            self.books.load_lost((row.subscriber_id, row.grant_id), row.amount_microcredits)

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        outcome = await self._run(operation)
        assert isinstance(outcome, Authorization)
        return outcome

    async def add_key(self, key: ApiKey) -> ApiKey:
        authorization = self.books.authorizations.get(key.authorization_id)
        if authorization is None:
            raise ResourceNotFound(resource_name=f"authorizations/{key.authorization_id}")
        if any(other.secret_hash == key.secret_hash and other.key_id != key.key_id for other in self._keys.values()):
            raise IdConflict(resource="key", id=key.key_id)
        if key.key_id not in self._keys:
            check_key(key)
            if authorization.revoke_time_us is not None:
                raise AuthorizationRevoked
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

    async def revoke_authorization(self, authorization_id: str, now_us: int) -> int:
        outcome = await self._run(RevokeAuthorization(authorization_id=authorization_id, now_us=now_us))
        assert isinstance(outcome, Authorization)
        assert outcome.revoke_time_us is not None
        return outcome.revoke_time_us

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        for key_id, use_time_us in use_times_us.items():
            key = self._keys.get(key_id)
            if key is not None and (key.last_used_time_us or 0) < use_time_us:
                self._keys[key_id] = replace(key, last_used_time_us=use_time_us)

    async def add_rate_cards(self, cards: Sequence[RateCard]) -> None:
        for card in cards:
            if self._cards.get(card.rate_card_id, card) != card:
                raise RateCardServed(id=card.rate_card_id)
        self._cards.update({card.rate_card_id: card for card in cards})

    # --- LedgerStore: reading ---------------------------------------------------------------------------------------

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        key = next((key for key in self._keys.values() if key.secret_hash == secret_hash), None)
        if key is None:
            return None
        return Grantee(key=key, authorization=self.books.authorizations.rows[key.authorization_id])

    async def find_request(
        self, subscriber_id: str, authorization_id: str, request_id: str, now_us: int
    ) -> Replayed | Reservation | None:
        key = (subscriber_id, authorization_id, request_id)
        charge = self.books.charge_of_request(key)
        if charge is None:
            return self.books.active_reservation(key)
        balance = await self.balance(subscriber_id, authorization_id, now_us)
        return Replayed(charge=charge, spendable_microcredits=balance.spendable_microcredits)

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

    async def read_charges(self, times: Times) -> AsyncGenerator[Sequence[Charge], None]:
        yield [row for row in self.books.charges.rows.values() if times.first_us <= row.settle_time_us < times.end_us]

    async def read_transfers(self, times: Times) -> AsyncGenerator[Sequence[Transfer], None]:
        yield sorted(
            (row for row in self._transfers if times.first_us <= row.create_time_us < times.end_us),
            key=lambda row: (row.subscriber_id, row.sequence),
        )

    async def count_subscribers(self) -> int:
        return len(self.books.wallets.rows)

    async def compare_usage(self, settle_time_us_min: int) -> tuple[UsageComparison, ...]:
        groups: dict[tuple[int, str, str, CountingSource], list[Charge]] = {}
        for charge in self.books.charges.rows.values():
            is_wanted = charge.settle_time_us >= settle_time_us_min and charge.close_cause is CloseCause.FINISHED
            if is_wanted and charge.attempts:
                day_us = charge.settle_time_us // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY
                key = (day_us, charge.attempts[-1].backend_id, charge.model_id, charge.counting_source)
                groups.setdefault(key, []).append(charge)
        return tuple(_compared(key, charges) for key, charges in sorted(groups.items()))

    async def account_balances(self, days: Days = ALL_DAYS) -> Mapping[str, AccountBalance]:
        rolled_up = RollUp()
        for transfer in self._transfers:
            if days.first <= transfer.create_time_us // DAY_US <= days.last:
                rolled_up.add(transfer)
        return rolled_up.balances()

    async def audit(self, *, after: str | None = None) -> AsyncGenerator[SubscriberLedger, None]:
        balances = await self.account_balances()
        for mine, wallet in sorted(self.books.wallets.rows.items()):
            if after is not None and mine <= after:
                continue
            charges = [row for row in self.books.charges.rows.values() if row.subscriber_id == mine]
            reservations = [row for row in self.books.reservations.rows.values() if row.subscriber_id == mine]
            settled = {row.reservation_id for row in reservations if row.state is ReservationState.SETTLED}
            charged = {row.reservation_id for row in charges}
            yield SubscriberLedger(
                wallet=wallet,
                is_erased=mine in self.erasures,
                rate_cards=self._cards,
                account_balances=balances,
                reserved_microcredits=sum(row.reserved_microcredits for row in self.open_reservations()),
                grants=tuple(self.books.grants_of(mine)),
                authorizations=tuple(r for r in self.books.authorizations.rows.values() if r.subscriber_id == mine),
                open_reservations=tuple(row for row in reservations if row.state is ReservationState.ACTIVE),
                ownerless_reservation_ids=(),
                wrong_closed_reservations=tuple(_wrong_closed(reservations, charged)),
                charge_ids_without_settled_reservation=tuple(
                    row.charge_id
                    for row in charges
                    if row.reservation_id not in settled
                    and mine not in self.erasures
                    and (
                        row.settle_time_us >= self._pruned_before_us
                        or row.reservation_id in self.books.reservations.rows
                    )
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


def _wrong_closed(reservations: Iterable[Reservation], charged: set[str]) -> Iterator[ClosedReservation]:
    for row in reservations:
        if row.state is ReservationState.ACTIVE:
            continue
        marks = [0, row.delivered_microcredits, row.captured_microcredits, row.reserved_microcredits]
        problem = None
        if row.state is ReservationState.SETTLED and row.reservation_id not in charged:
            problem = ClosedProblem.NOT_CHARGED
        elif row.allocations:
            problem = ClosedProblem.SETS_ASIDE
        elif row.close_cause is None or row.close_time_us is None:
            problem = ClosedProblem.HALF_CLOSED
        elif marks != sorted(marks) or row.reserved_microcredits > row.limit_microcredits:
            problem = ClosedProblem.WATERMARKS
        elif row.state is ReservationState.RELEASED and row.delivered_microcredits:
            problem = ClosedProblem.DELIVERED
        if problem is not None:
            yield ClosedReservation(reservation_id=row.reservation_id, problem=problem)


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


def _compared(key: tuple[int, str, str, CountingSource], charges: list[Charge]) -> UsageComparison:
    day_us, backend_id, model_id, counting_source = key
    reported = [(charge, charge.usage_reported) for charge in charges if charge.usage_reported is not None]
    return UsageComparison(
        day_us=day_us,
        backend_id=backend_id,
        model_id=model_id,
        counting_source=counting_source,
        charges=len(charges),
        unreported_charges=len(charges) - len(reported),
        mismatched_charges=sum(charge.usage_mismatch for charge in charges),
        counted_tokens=sum(charge.usage_counted.total() for charge, _ in reported),
        reported_tokens=sum(usage.total() for _, usage in reported),
    )

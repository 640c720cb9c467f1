"""The ledger: decides one operation at a time over loaded rows, and refuses without having changed anything.

Stores load the rows, hand over a batch in the order of ``batches.place`` and write what changed; nothing here waits or
reads a clock. Grants whose time is over roll over or become breakage whenever an operation changes their wallet:
lazily, once, never below zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from metergate.core.batches import Operation, Outcome, check_ids_of
from metergate.core.books import Books, request_key
from metergate.core.capturing import answer, debited
from metergate.core.changes import changed
from metergate.core.correcting import adjust, refund, reverse, set_wallet_state
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import (
    AuthorizationRevoked,
    CapReached,
    InsufficientCredit,
    LedgerInvariantBroken,
    RequestIdConflict,
    RequestInProgress,
    ReservationNotOwned,
    WalletSuspended,
)
from metergate.core.granting import add_grant
from metergate.core.grants import allocate, give_back, merge
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    CaptureStatus,
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
    Settlement,
    SetWalletState,
)
from metergate.core.postings import (
    available,
    cap_left,
    expire,
    find_reservation,
    move_counters,
    payer,
    post_from_grant,
    spendable,
)
from metergate.core.reservation import (
    Allocation,
    CloseCause,
    Estimate,
    Reservation,
    ReservationEvent,
    ReservationState,
    next_state,
)
from metergate.core.rows import (
    Authorization,
    Channel,
    Charge,
    FinishReason,
    TransferKind,
    Wallet,
    WalletState,
)
from metergate.core.set_up import add_authorization, add_subscriber, expire_wallet, revoke_authorization
from metergate.core.usage import CountingSource

# What a capture of a reservation that is not there is answered with.
_UNKNOWN = Captured(status=CaptureStatus.CLOSED, captured_microcredits=0, reserved_microcredits=0, refusal=None)


class Ledger:
    """Decides operations over ``books``, which hold at least every row the operations touch."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._deciders: dict[type[Operation], Callable[[Any], Outcome]] = {
            Capture: self.capture,
            Settle: self.settle,
            Recover: self.recover,
            Reserve: self.reserve,
            AddGrant: partial(add_grant, books),
            AddSubscriber: partial(add_subscriber, books),
            AddAuthorization: partial(add_authorization, books),
            RevokeAuthorization: partial(revoke_authorization, books),
            Refund: partial(refund, books),
            Adjust: partial(adjust, books),
            Reverse: partial(reverse, books),
            SetWalletState: partial(set_wallet_state, books),
            Expire: partial(expire_wallet, books),
        }

    def decide(self, operation: Operation) -> Outcome:
        """Carry out one operation on the books, or raise its refusal and leave them as they were."""
        check_ids_of(operation)
        return self.carry_out(operation)

    def carry_out(self, operation: Operation) -> Outcome:
        """What ``decide`` does, for an operation whose ids were checked before its rows were loaded."""
        return self._deciders[type(operation)](operation)

    # --- reserving --------------------------------------------------------------------------------------------------

    def reserve(self, operation: Reserve) -> Reserved | Replayed:
        """Set credit aside.

        Refusals: ResourceNotFound, RequestIdConflict, RequestInProgress, WalletSuspended, AuthorizationRevoked,
        CapReached, InsufficientCredit, RequestInvalid (an id that is none). Asked again while the reservation is open,
        it answers with the reservation as it stands, whatever amounts are asked for now.
        """
        wallet, authorization = payer(self._books, operation.subscriber_id, operation.authorization_id)
        known = self._outcome_before(operation, wallet, authorization)
        if known is not None:
            return known
        if wallet.state is WalletState.SUSPENDED:
            raise WalletSuspended
        if authorization.revoke_time_us is not None:
            raise AuthorizationRevoked
        amount = self._reservable(operation, authorization)
        expire(self._books, operation.subscriber_id, operation.now_us)
        reservation = Reservation(
            reservation_id=operation.reservation_id,
            subscriber_id=operation.subscriber_id,
            authorization_id=operation.authorization_id,
            app_id=authorization.app_id,
            channel=authorization.channel,
            request_id=operation.request_id,
            content_hash=operation.content_hash,
            owner=operation.owner,
            model_id=operation.model_id,
            provider_id=operation.provider_id,
            counting_source=operation.counting_source,
            rate_card_id=operation.rate_card_id,
            limit_microcredits=min(operation.limit_microcredits, AMOUNT_MICROCREDITS_MAX),
            state=ReservationState.ACTIVE,
            close_cause=None,
            reserved_microcredits=amount,
            captured_microcredits=operation.capture_microcredits,
            captured_usage=operation.capture_usage,
            delivered_microcredits=0,
            allocations=self._draw(authorization, amount, operation.now_us),
            create_time_us=operation.now_us,
            close_time_us=None,
            estimate=operation.estimate,
        )
        self._books.add_reservation(reservation)
        return Reserved(reservation=reservation)

    def _outcome_before(
        self, operation: Reserve, wallet: Wallet, authorization: Authorization
    ) -> Reserved | Replayed | None:
        """What this request was answered already (L4); None if it is to run."""
        key = (operation.subscriber_id, operation.authorization_id, operation.request_id)
        charge = self._books.charge_of_request(key)
        if charge is not None:
            if charge.content_hash != operation.content_hash:
                raise RequestIdConflict(request_id=operation.request_id)
            may_spend = self._spendable(wallet, authorization, operation.now_us)
            return Replayed(charge=charge, spendable_microcredits=may_spend)
        active = self._books.active_reservation(key)
        if active is not None:
            if active.content_hash != operation.content_hash:
                raise RequestIdConflict(request_id=operation.request_id)
            if (active.reservation_id, active.owner) != (operation.reservation_id, operation.owner):
                raise RequestInProgress(request_id=operation.request_id)
            return Reserved(reservation=active)
        if self._books.reservations.get(operation.reservation_id) is not None:
            raise LedgerInvariantBroken(problem=f"reservation {operation.reservation_id} was there before")
        return None

    def _reservable(self, operation: Reserve, authorization: Authorization) -> int:
        """How much of what is wanted can be reserved; at least the minimum."""
        minimum = operation.minimum_microcredits
        if not 0 <= operation.capture_microcredits <= minimum <= operation.wanted_microcredits:
            raise LedgerInvariantBroken(problem="a reservation needs 0 <= captured <= minimum <= wanted")
        limit = min(operation.limit_microcredits, AMOUNT_MICROCREDITS_MAX)
        if limit < minimum:
            raise CapReached(cap="request's credit limit", remaining_microcredits=limit, required_microcredits=minimum)
        in_cap = cap_left(authorization)
        if in_cap < minimum:
            raise CapReached(cap="authorization's cap", remaining_microcredits=in_cap, required_microcredits=minimum)
        credit = available(self._books, operation.subscriber_id, operation.now_us)
        if credit < minimum:
            raise InsufficientCredit(available_microcredits=credit, required_microcredits=minimum)
        return min(operation.wanted_microcredits, limit, in_cap, credit)

    def _draw(self, authorization: Authorization, amount_microcredits: int, now_us: int) -> tuple[Allocation, ...]:
        """Take the amount from the grants, in burn order, and from the authorization's cap."""
        subscriber_id = authorization.subscriber_id
        allocations = allocate(self._books.grants_of(subscriber_id), amount_microcredits, now_us)
        for allocation in allocations:
            self._books.change_remaining(subscriber_id, allocation.grant_id, -allocation.amount_microcredits)
        move_counters(self._books, authorization, reserved_by=amount_microcredits, charged_by=0)
        return allocations

    # --- capturing --------------------------------------------------------------------------------------------------

    def capture(self, operation: Capture) -> Captured:
        """Debit a reservation, extending it on the way as far as grants and caps allow.

        A refused extension never voids a capture that fits; an extension stays even if the capture does not fit. One
        that needs no extension touches the reservation's row only. LedgerInvariantBroken if more was delivered than
        is captured (L1).
        """
        before = self._books.reservations.get(operation.reservation_id)
        if before is None or before.subscriber_id != operation.subscriber_id:
            return _UNKNOWN
        if before.state is not ReservationState.ACTIVE:
            return answer(CaptureStatus.CLOSED, before)
        if before.owner != operation.owner:
            return answer(CaptureStatus.NOT_OWNER, before)
        target = operation.target_microcredits
        wanted = max(operation.wanted_microcredits, target)
        reserved, refusal = before.reserved_microcredits, None
        if wanted > reserved:
            more, refusal = self._extension(before, wanted, operation.now_us)
            reserved += more
        after = debited(before, operation, reserved)
        if reserved > before.reserved_microcredits:
            after = self._extend(after, reserved - before.reserved_microcredits, operation.now_us)
        self._books.reservations.change(after.reservation_id, after)
        return answer(CaptureStatus.OPEN, after, refusal)

    def _extension(self, reservation: Reservation, wanted: int, now_us: int) -> tuple[int, CloseCause | None]:
        """By how much a reservation can grow towards ``wanted``, and what keeps it from all of it.

        A revoked authorization leaves nothing of its cap; a suspended wallet has nothing available.
        """
        wallet, authorization = payer(self._books, reservation.subscriber_id, reservation.authorization_id)
        missing = wanted - reservation.reserved_microcredits
        in_cap = 0 if authorization.revoke_time_us is not None else cap_left(authorization)
        is_suspended = wallet.state is WalletState.SUSPENDED
        credit = 0 if is_suspended else available(self._books, reservation.subscriber_id, now_us)
        limit_left = min(reservation.limit_microcredits, AMOUNT_MICROCREDITS_MAX) - reservation.reserved_microcredits
        bounds = (
            (limit_left, CloseCause.CREDIT_LIMIT_REACHED),
            (in_cap, CloseCause.CAP_REACHED),
            (credit, CloseCause.CREDIT_EXHAUSTED),
        )
        room, cause = min(bounds, key=lambda bound: bound[0])
        return (missing, None) if missing <= room else (max(0, room), cause)

    def _extend(self, reservation: Reservation, more: int, now_us: int) -> Reservation:
        expire(self._books, reservation.subscriber_id, now_us)
        _, authorization = payer(self._books, reservation.subscriber_id, reservation.authorization_id)
        drawn = self._draw(authorization, more, now_us)
        grants = {grant.grant_id: grant for grant in self._books.grants_of(reservation.subscriber_id)}
        return changed(reservation, allocations=merge(reservation.allocations, drawn, grants))

    # --- closing ----------------------------------------------------------------------------------------------------

    def settle(self, operation: Settle) -> Settled:
        """Close a reservation.

        Asked again, the first outcome, whatever the settlement says now. Refusals: ResourceNotFound (no such
        reservation), ReservationNotOwned, LedgerInvariantBroken (a charge above what is captured, a capture
        above what is reserved).
        """
        reservation = find_reservation(self._books, operation.reservation_id, operation.subscriber_id)
        if reservation.state is not ReservationState.ACTIVE:
            return self._settled(reservation, operation.now_us)
        if reservation.owner != operation.owner:
            raise ReservationNotOwned(reservation_id=reservation.reservation_id)
        return self._close(reservation, operation.close_cause, operation.settlement, operation.now_us)

    def recover(self, operation: Recover) -> Settled | Reserved:
        """Close what nobody runs any more, at what it had captured; Reserved if its owner is the survivor."""
        reservation = find_reservation(self._books, operation.reservation_id, operation.subscriber_id)
        if reservation.state is not ReservationState.ACTIVE:
            return self._settled(reservation, operation.now_us)
        if reservation.owner == operation.survivor:
            return Reserved(reservation=reservation)
        settlement = None
        if reservation.captured_microcredits > 0:
            evidence = _evidence(reservation)
            settlement = Settlement(
                charge_id=operation.charge_id,
                charged_microcredits=evidence.microcredits,
                usage_counted=evidence.usage,
                usage_reported=None,
                usage_mismatch=False,
                attempts=(),
                finish_reason=FinishReason.INTERRUPTED,
                captured_microcredits=0,
            )
        return self._close(reservation, CloseCause.CRASH, settlement, operation.now_us)

    def _close(
        self, reservation: Reservation, cause: CloseCause, settlement: Settlement | None, now_us: int
    ) -> Settled:
        """Charge and give back the rest, or give back everything; all checks come before the first change."""
        event = ReservationEvent.RELEASE if settlement is None else ReservationEvent.SETTLE
        captured, charged = reservation.captured_microcredits, 0
        if settlement is not None:
            captured = max(captured, settlement.captured_microcredits)
            charged = settlement.charged_microcredits
            self._check_settlement(reservation, settlement, captured)
        raised = settlement is not None and captured > reservation.captured_microcredits
        closed = changed(
            reservation,
            state=next_state(reservation.state, event),
            close_cause=cause,
            captured_microcredits=captured,
            captured_usage=settlement.usage_counted if settlement and raised else reservation.captured_usage,
            allocations=(),
            close_time_us=now_us,
        )
        subscriber_id = reservation.subscriber_id
        expire(self._books, subscriber_id, now_us)
        consumed, returned = give_back(reservation.allocations, reservation.reserved_microcredits - charged)
        if settlement is not None:
            self._books.add_charge(_charge(closed, settlement, consumed))
            for part in consumed:
                post_from_grant(self._books, subscriber_id, TransferKind.CHARGE, part, settlement.charge_id, now_us)
        for part in returned:
            self._books.change_remaining(subscriber_id, part.grant_id, part.amount_microcredits)
        expire(self._books, subscriber_id, now_us)  # what came back to a grant whose time is over
        self._books.close_reservation(closed)
        _, authorization = payer(self._books, subscriber_id, reservation.authorization_id)
        move_counters(self._books, authorization, reserved_by=-reservation.reserved_microcredits, charged_by=charged)
        return self._settled(closed, now_us)

    def _check_settlement(self, reservation: Reservation, settlement: Settlement, captured: int) -> None:
        if captured > reservation.reserved_microcredits:
            problem = f"{captured} microcredits captured, only {reservation.reserved_microcredits} reserved"
            raise LedgerInvariantBroken(problem=problem)
        if not 0 <= settlement.charged_microcredits <= captured:
            problem = f"{settlement.charged_microcredits} microcredits charged, only {captured} captured"
            raise LedgerInvariantBroken(problem=problem)
        if self._books.charges.get(settlement.charge_id) is not None:
            raise LedgerInvariantBroken(problem=f"charge {settlement.charge_id} was there before")
        if self._books.charge_of_request(request_key(reservation)) is not None:
            raise LedgerInvariantBroken(problem=f"request {reservation.request_id} was charged before")

    def _settled(self, closed: Reservation, now_us: int) -> Settled:
        wallet, authorization = payer(self._books, closed.subscriber_id, closed.authorization_id)
        return Settled(
            charge=self._books.charge_of_reservation(closed.reservation_id),
            spendable_microcredits=self._spendable(wallet, authorization, now_us),
        )

    def _spendable(self, wallet: Wallet, authorization: Authorization, now_us: int) -> int:
        return spendable(wallet, authorization, available(self._books, wallet.subscriber_id, now_us))


def _evidence(reservation: Reservation) -> Estimate:
    """What a reservation whose owner died is settled at: what it captured, or if that is a bound, the estimate."""
    captured = Estimate(usage=reservation.captured_usage, microcredits=reservation.captured_microcredits)
    estimate = reservation.estimate
    return captured if estimate is None or estimate.microcredits > captured.microcredits else estimate


def _charge(closed: Reservation, settlement: Settlement, consumed: tuple[Allocation, ...]) -> Charge:
    """The record of a reservation that was just closed."""
    assert closed.close_cause is not None
    assert closed.close_time_us is not None
    is_crash, charged = closed.close_cause is CloseCause.CRASH, settlement.charged_microcredits
    return Charge(
        charge_id=settlement.charge_id,
        reservation_id=closed.reservation_id,
        subscriber_id=closed.subscriber_id,
        authorization_id=closed.authorization_id,
        app_id=closed.app_id,
        channel=Channel(closed.channel),
        request_id=closed.request_id,
        content_hash=closed.content_hash,
        model_id=closed.model_id,
        provider_id=closed.provider_id,
        attempts=settlement.attempts,
        counting_source=CountingSource(closed.counting_source),
        usage_counted=settlement.usage_counted,
        usage_reported=settlement.usage_reported,
        usage_mismatch=settlement.usage_mismatch,
        rate_card_id=closed.rate_card_id,
        captured_microcredits=closed.captured_microcredits,
        charged_microcredits=settlement.charged_microcredits,
        delivered_microcredits=min(closed.delivered_microcredits, charged) if is_crash else charged,
        allocations=consumed,
        finish_reason=settlement.finish_reason,
        close_cause=closed.close_cause,
        create_time_us=closed.create_time_us,
        settle_time_us=closed.close_time_us,
    )

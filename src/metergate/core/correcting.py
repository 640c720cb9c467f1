"""Corrections: a refund of a charge, an adjustment by hand, the reversal of a payment, a wallet stopped or let go on.

Nothing that was recorded changes: each is new transfers, and one immutable row that says why and who. Each may be asked
for again and is answered as it first was (L4); none takes more than there is (L2).
"""

from collections.abc import Iterable

from metergate.core.books import Books
from metergate.core.changes import changed
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import (
    AlreadyReversed,
    IdConflict,
    InsufficientCredit,
    RefundExceedsCharge,
    RequestInvalid,
    ResourceNotFound,
    Violation,
)
from metergate.core.grants import (
    adjustment_grant_id,
    allocate,
    burn_key,
    give_back,
    is_expired,
    origin_of,
    refund_grant_id,
)
from metergate.core.operations import Adjust, Refund, Reverse, SetWalletState
from metergate.core.postings import available, check_room, expire, take_from_grant
from metergate.core.reservation import Allocation
from metergate.core.rows import (
    GOODWILL_ACCOUNT,
    PAID_SOURCES,
    REVENUE_ACCOUNT,
    Charge,
    Correction,
    CorrectionKind,
    Grant,
    GrantSource,
    TransferKind,
    WalletState,
    grant_account,
)
from metergate.core.times import MICROSECONDS_PER_SECOND, OUT_OF_RANGE, is_time_us

# Credit given by hand: most grants need no opinion on who goes first, and this is their customary priority.
ADJUSTMENT_PRIORITY = 100


def refund(books: Books, operation: Refund) -> Correction:
    """Give back part of a charge, the last drawn first, each part to the grant that paid it.

    What an expired grant paid goes to a new grant instead, which carries on its credit. A reversed one gets its part,
    and it is taken back at once: nobody paid for it. The authorization's cap has room again for what was refunded.

    Refusals: ResourceNotFound (no such subscriber, or charge of it), IdConflict, RefundExceedsCharge, RequestInvalid.
    """
    _check_subscriber(books, operation.subscriber_id)
    correction = _asked(
        operation,
        CorrectionKind.REFUND,
        charge_id=operation.charge_id,
        amount_microcredits=operation.amount_microcredits,
        grant_seconds=operation.grant_seconds,
    )
    first = _first(books, correction)
    if first is not None:
        return first
    charge = books.charges.get(operation.charge_id)
    if charge is None or charge.subscriber_id != operation.subscriber_id:
        raise ResourceNotFound(resource_name=f"subscribers/{operation.subscriber_id}/charges/{operation.charge_id}")
    _check_amount(operation.amount_microcredits, 1)
    expire_time_us = _expire_time(operation.grant_seconds, operation.now_us)
    parts = _refundable(books, charge, operation.amount_microcredits)
    to_grants = [part for part in parts if not _is_closed(_grant(books, charge, part), operation.now_us)]
    to_new_grants = _by_origin(part for part in parts if part not in to_grants)
    revived = [part for part in to_grants if _grant(books, charge, part).remaining_microcredits == 0]
    more_grants = len(revived) + len(to_new_grants)
    check_room(books, charge.subscriber_id, operation.amount_microcredits, operation.now_us, more_grants=more_grants)
    expire(books, charge.subscriber_id, operation.now_us)
    for part in to_grants:
        books.change_remaining(charge.subscriber_id, part.grant_id, part.amount_microcredits)
        _post_refund(books, correction, part)
    for origin_grant_id, expired in to_new_grants.items():
        _add_refund_grant(books, correction, origin_grant_id, expired, expire_time_us)
    expire(books, charge.subscriber_id, operation.now_us)  # what came back to a grant that was reversed
    authorization = books.authorizations.get(charge.authorization_id)
    if authorization is not None:  # it may have been erased since
        after = authorization.charged_microcredits - operation.amount_microcredits
        books.authorizations.change(charge.authorization_id, changed(authorization, charged_microcredits=after))
    books.add_correction(correction)
    return correction


def _refundable(books: Books, charge: Charge, amount_microcredits: int) -> tuple[Allocation, ...]:
    """What goes back for which grant, the last drawn first: as if earlier refunds and this one were one."""
    refunded = books.refunded_microcredits(charge.charge_id)
    if amount_microcredits > charge.charged_microcredits - refunded:
        raise RefundExceedsCharge(
            charge_id=charge.charge_id,
            charged_microcredits=charge.charged_microcredits,
            refunded_microcredits=refunded,
            amount_microcredits=amount_microcredits,
        )
    left, _ = give_back(charge.allocations, refunded)
    _, parts = give_back(left, amount_microcredits)
    return parts


def _by_origin(parts: Iterable[Allocation]) -> dict[str, list[Allocation]]:
    """Apart, so that a reversal reaches what is unpaid then, and nothing else."""
    apart: dict[str, list[Allocation]] = {}
    for part in parts:
        apart.setdefault(origin_of(part.grant_id), []).append(part)
    return apart


def _grant(books: Books, owner: Charge | Correction, part: Allocation) -> Grant:
    return books.grants.rows[(owner.subscriber_id, part.grant_id)]


def _is_closed(grant: Grant, now_us: int) -> bool:
    """Whether it takes nothing back: its time is over, and its payment was not taken back."""
    return grant.reverse_time_us is None and is_expired(grant, now_us)


def _post_refund(books: Books, correction: Correction, part: Allocation, added_grant: Grant | None = None) -> None:
    books.post(
        TransferKind.REFUND,
        subscriber_id=correction.subscriber_id,
        debit_account=REVENUE_ACCOUNT,
        credit_account=grant_account(part.grant_id),
        amount_microcredits=part.amount_microcredits,
        grant_id=part.grant_id,
        charge_id=correction.charge_id,
        correction_id=correction.correction_id,
        now_us=correction.create_time_us,
        added_grant=added_grant,
    )


def _add_refund_grant(
    books: Books, correction: Correction, origin_grant_id: str, parts: list[Allocation], expire_time_us: int | None
) -> None:
    """One grant for all that expired ones of one origin paid, drawn as early as the first of those."""
    whole = Allocation(
        grant_id=refund_grant_id(correction.correction_id, origin_grant_id),
        amount_microcredits=sum(part.amount_microcredits for part in parts),
    )
    priority = min(_grant(books, correction, part).priority for part in parts)
    grant = _grant_of(correction, whole, GrantSource.REFUND, priority, expire_time_us)
    books.add_grant(grant)
    _post_refund(books, correction, whole, grant)


def adjust(books: Books, operation: Adjust) -> Correction:
    """Give credit in a grant of its own, or take what is available, in burn order.

    Refusals: ResourceNotFound (no such subscriber), IdConflict, InsufficientCredit, RequestInvalid.
    """
    _check_subscriber(books, operation.subscriber_id)
    amount = operation.amount_microcredits
    correction = _asked(
        operation, CorrectionKind.ADJUSTMENT, amount_microcredits=amount, grant_seconds=operation.grant_seconds
    )
    first = _first(books, correction)
    if first is not None:
        return first
    _check_amount(amount, -AMOUNT_MICROCREDITS_MAX)
    if amount > 0:
        _give(books, correction)
    else:
        _take(books, correction)
    books.add_correction(correction)
    return correction


def _give(books: Books, correction: Correction) -> None:
    expire_time_us = _expire_time(correction.grant_seconds, correction.create_time_us)
    amount, now_us = correction.amount_microcredits, correction.create_time_us
    check_room(books, correction.subscriber_id, amount, now_us, more_grants=1)
    expire(books, correction.subscriber_id, now_us)
    whole = Allocation(grant_id=adjustment_grant_id(correction.correction_id), amount_microcredits=amount)
    grant = _grant_of(correction, whole, GrantSource.GIFT, ADJUSTMENT_PRIORITY, expire_time_us)
    books.add_grant(grant)
    books.post(
        TransferKind.ADJUSTMENT,
        subscriber_id=correction.subscriber_id,
        debit_account=GOODWILL_ACCOUNT,
        credit_account=grant_account(whole.grant_id),
        amount_microcredits=amount,
        grant_id=whole.grant_id,
        correction_id=correction.correction_id,
        now_us=now_us,
        added_grant=grant,
    )


def _take(books: Books, correction: Correction) -> None:
    if correction.grant_seconds is not None:
        raise RequestInvalid(Violation("grant_seconds", "is for credit that is given; this takes it"))
    amount, now_us = -correction.amount_microcredits, correction.create_time_us
    credit = available(books, correction.subscriber_id, now_us)
    if amount > credit:
        raise InsufficientCredit(available_microcredits=credit, required_microcredits=amount)
    expire(books, correction.subscriber_id, now_us)
    for part in allocate(books.grants_of(correction.subscriber_id), amount, now_us):
        take_from_grant(
            books,
            correction.subscriber_id,
            TransferKind.ADJUSTMENT,
            part,
            now_us,
            correction_id=correction.correction_id,
        )


def reverse(books: Books, operation: Reverse) -> Correction:
    """Take back what is left of a grant whose payment was taken back, and of those that carry on its credit.

    What was spent, and not refunded, or is set aside cannot be taken: the wallet is suspended for it. What of it comes
    back later, from open reservations or refunds, is taken then. What expired, or was taken by hand, nobody owes.

    Refusals: ResourceNotFound (no such subscriber or grant), IdConflict, AlreadyReversed, RequestInvalid (nobody paid
    for it).
    """
    _check_subscriber(books, operation.subscriber_id)
    asked = _asked(operation, CorrectionKind.REVERSAL, grant_id=operation.grant_id)
    first = _first(books, asked)
    if first is not None:
        return first
    subscriber_id, now_us = operation.subscriber_id, operation.now_us
    grant = books.grants.get((subscriber_id, operation.grant_id))
    if grant is None:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/grants/{operation.grant_id}")
    if grant.source not in PAID_SOURCES:
        problem = f"is a {grant.source}, which nobody paid for: adjust the wallet instead"
        raise RequestInvalid(Violation("name", problem))
    if grant.reverse_time_us is not None:
        raise AlreadyReversed(grant_id=grant.grant_id)
    expire(books, subscriber_id, now_us)
    carriers = [row for row in books.grants_of(subscriber_id) if origin_of(row.grant_id) == grant.grant_id]
    taken = sum(_reverse_grant(books, row, asked) for row in sorted(carriers, key=burn_key))
    lost = sum(books.lost_microcredits((subscriber_id, row.grant_id)) for row in carriers)
    shortfall = grant.amount_microcredits - taken - lost
    if shortfall > 0:
        _set_state(books, subscriber_id, WalletState.SUSPENDED)
    correction = changed(asked, amount_microcredits=taken, shortfall_microcredits=shortfall)
    books.add_correction(correction)
    return correction


def _reverse_grant(books: Books, grant: Grant, correction: Correction) -> int:
    """Mark it and take what remains; returns how much that was."""
    key = (grant.subscriber_id, grant.grant_id)
    books.grants.change(key, changed(grant, reverse_time_us=correction.create_time_us))
    if grant.remaining_microcredits > 0:
        rest = Allocation(grant_id=grant.grant_id, amount_microcredits=grant.remaining_microcredits)
        take_from_grant(
            books,
            grant.subscriber_id,
            TransferKind.REVERSAL,
            rest,
            correction.create_time_us,
            correction_id=correction.correction_id,
        )
    return grant.remaining_microcredits


def set_wallet_state(books: Books, operation: SetWalletState) -> Correction:
    """Stop a wallet, or let it be spent from again; refusals: ResourceNotFound, IdConflict, RequestInvalid."""
    _check_subscriber(books, operation.subscriber_id)
    is_stop = operation.state is WalletState.SUSPENDED
    correction = _asked(operation, CorrectionKind.SUSPENSION if is_stop else CorrectionKind.RESUMPTION)
    first = _first(books, correction)
    if first is not None:
        return first
    _set_state(books, operation.subscriber_id, operation.state)
    books.add_correction(correction)
    return correction


# --- what they share ------------------------------------------------------------------------------------------------


def _check_subscriber(books: Books, subscriber_id: str) -> None:
    if books.wallets.get(subscriber_id) is None:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}")


def _asked(
    operation: Refund | Adjust | Reverse | SetWalletState,
    kind: CorrectionKind,
    *,
    charge_id: str = "",
    grant_id: str = "",
    amount_microcredits: int = 0,
    grant_seconds: int | None = None,
) -> Correction:
    """The record of an operation, as it is asked for: what does not apply to its kind is empty."""
    return Correction(
        correction_id=operation.correction_id,
        subscriber_id=operation.subscriber_id,
        kind=kind,
        charge_id=charge_id,
        grant_id=grant_id,
        amount_microcredits=amount_microcredits,
        shortfall_microcredits=0,
        grant_seconds=grant_seconds,
        reason=operation.reason,
        actor=operation.actor,
        create_time_us=operation.now_us,
    )


def _first(books: Books, correction: Correction) -> Correction | None:
    """What this id was answered before; IdConflict if that was something else."""
    first = books.corrections.get((correction.subscriber_id, correction.correction_id))
    if first is not None and _content(first) != _content(correction):
        raise IdConflict(resource="correction", id=correction.correction_id)
    return first


def _content(correction: Correction) -> Correction:
    """What was asked for: all but when, and what a reversal found to take."""
    asked = changed(correction, create_time_us=0, shortfall_microcredits=0)
    return changed(asked, amount_microcredits=0) if correction.kind is CorrectionKind.REVERSAL else asked


def _check_amount(amount_microcredits: int, least: int) -> None:
    if amount_microcredits == 0 or not least <= amount_microcredits <= AMOUNT_MICROCREDITS_MAX:
        problem = f"must be from {least} to {AMOUNT_MICROCREDITS_MAX}, and not 0"
        raise RequestInvalid(Violation("amount_microcredits", problem))


def _expire_time(grant_seconds: int | None, now_us: int) -> int | None:
    if grant_seconds is None:
        return None
    expire_time_us = now_us + grant_seconds * MICROSECONDS_PER_SECOND
    if grant_seconds <= 0:
        raise RequestInvalid(Violation("grant_seconds", "must be 1 or more"))
    if not is_time_us(expire_time_us):
        raise RequestInvalid(Violation("grant_seconds", f"leads to a time that {OUT_OF_RANGE}"))
    return expire_time_us


def _grant_of(
    correction: Correction, whole: Allocation, source: GrantSource, priority: int, expire_time_us: int | None
) -> Grant:
    return Grant(
        grant_id=whole.grant_id,
        subscriber_id=correction.subscriber_id,
        source=source,
        priority=priority,
        amount_microcredits=whole.amount_microcredits,
        remaining_microcredits=whole.amount_microcredits,
        effective_time_us=correction.create_time_us,
        expire_time_us=expire_time_us,
        create_time_us=correction.create_time_us,
    )


def _set_state(books: Books, subscriber_id: str, state: WalletState) -> None:
    wallet = books.wallets.rows[subscriber_id]
    books.wallets.change(subscriber_id, changed(wallet, state=state))

"""The steps that decisions are made of: who pays, what may be spent, counters, expiry, and what leaves a grant."""

from metergate.core.books import Books
from metergate.core.changes import changed
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import RequestInvalid, ResourceNotFound, Violation
from metergate.core.grants import burn_key, is_expired, rollable, rollover_expire_time, rollover_grant_id
from metergate.core.reservation import Allocation, Reservation
from metergate.core.rows import (
    BREAKAGE_ACCOUNT,
    GOODWILL_ACCOUNT,
    REVENUE_ACCOUNT,
    REVERSALS_ACCOUNT,
    Authorization,
    Grant,
    GrantSource,
    TransferKind,
    Wallet,
    WalletState,
    grant_account,
)

# Grants of one wallet that are not spent or expired. A reserve reads and sorts all of them: with this many it takes
# some milliseconds. A subscriber that buys one a day, each valid for a year, has 365.
GRANTS_WITH_CREDIT_MAX = 1_000

# Where what leaves a grant for good goes.
DESTINATIONS = {
    TransferKind.CHARGE: REVENUE_ACCOUNT,
    TransferKind.EXPIRY: BREAKAGE_ACCOUNT,
    TransferKind.ADJUSTMENT: GOODWILL_ACCOUNT,
    TransferKind.REVERSAL: REVERSALS_ACCOUNT,
}


def payer(books: Books, subscriber_id: str, authorization_id: str) -> tuple[Wallet, Authorization]:
    """The wallet, and the authorization if it is the same subscriber's; ResourceNotFound otherwise."""
    wallet = books.wallets.get(subscriber_id)
    if wallet is None:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}")
    authorization = books.authorizations.get(authorization_id)
    if authorization is None or authorization.subscriber_id != subscriber_id:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/authorizations/{authorization_id}")
    return wallet, authorization


def find_reservation(books: Books, reservation_id: str, subscriber_id: str) -> Reservation:
    """The reservation if it is this subscriber's; ResourceNotFound otherwise."""
    reservation = books.reservations.get(reservation_id)
    if reservation is None or reservation.subscriber_id != subscriber_id:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/reservations/{reservation_id}")
    return reservation


def move_counters(books: Books, authorization: Authorization, *, reserved_by: int, charged_by: int) -> None:
    """Move what an authorization has reserved and charged up or down, in microcredits."""
    after = changed(
        authorization,
        reserved_microcredits=authorization.reserved_microcredits + reserved_by,
        charged_microcredits=authorization.charged_microcredits + charged_by,
    )
    books.authorizations.change(after.authorization_id, after)


# --- expiry ---------------------------------------------------------------------------------------------------------


def expire(books: Books, subscriber_id: str, now_us: int) -> None:
    """Move what remains of grants whose time is over, in burn order, whatever order they were loaded in.

    It rolls over as far as the grant's rule allows; the rest is breakage. What came back to a grant whose payment was
    taken back follows the payment.
    """
    grants = books.grants_of(subscriber_id)
    over = [
        grant
        for grant in grants
        if grant.remaining_microcredits > 0 and (is_expired(grant, now_us) or grant.reverse_time_us is not None)
    ]
    for grant in sorted(over, key=burn_key):
        rolled = _roll_over(books, grant, now_us)
        rest = Allocation(grant_id=grant.grant_id, amount_microcredits=grant.remaining_microcredits - rolled)
        if rest.amount_microcredits > 0:
            kind = TransferKind.EXPIRY if grant.reverse_time_us is None else TransferKind.REVERSAL
            take_from_grant(books, subscriber_id, kind, rest, now_us)


def _roll_over(books: Books, grant: Grant, now_us: int) -> int:
    """Move what may go on to the rollover grant, which it makes or lets grow; returns how much that was."""
    subscriber_id, grant_id = grant.subscriber_id, rollover_grant_id(grant.grant_id)
    rollover = books.grants.get((subscriber_id, grant_id))
    amount = rollable(grant, rollover, now_us)
    if amount <= 0:
        return 0
    books.change_remaining(subscriber_id, grant.grant_id, -amount)
    if rollover is None:
        rollover = _rollover_grant(grant, amount, now_us)
        books.add_grant(rollover)
    else:
        books.grow_grant(subscriber_id, grant_id, amount)
    books.post(
        TransferKind.ROLLOVER,
        subscriber_id=subscriber_id,
        debit_account=grant_account(grant.grant_id),
        credit_account=grant_account(grant_id),
        amount_microcredits=amount,
        grant_id=grant.grant_id,
        now_us=now_us,
        added_grant=rollover,
    )
    return amount


def _rollover_grant(grant: Grant, amount_microcredits: int, now_us: int) -> Grant:
    """Drawn with the priority of the one it follows, from the moment that one is over. It has no rule of its own."""
    assert grant.expire_time_us is not None, grant
    return Grant(
        grant_id=rollover_grant_id(grant.grant_id),
        subscriber_id=grant.subscriber_id,
        source=GrantSource.ROLLOVER,
        priority=grant.priority,
        amount_microcredits=amount_microcredits,
        remaining_microcredits=amount_microcredits,
        effective_time_us=grant.expire_time_us,
        expire_time_us=rollover_expire_time(grant),
        create_time_us=now_us,
    )


def take_from_grant(
    books: Books, subscriber_id: str, kind: TransferKind, part: Allocation, now_us: int, *, correction_id: str = ""
) -> None:
    """Take credit that a grant has remaining, for good, and post where it goes."""
    books.change_remaining(subscriber_id, part.grant_id, -part.amount_microcredits)
    post_from_grant(books, subscriber_id, kind, part, "", now_us, correction_id=correction_id)


def post_from_grant(
    books: Books,
    subscriber_id: str,
    kind: TransferKind,
    part: Allocation,
    charge_id: str,
    now_us: int,
    *,
    correction_id: str = "",
) -> None:
    """Post what left a grant for good."""
    books.post(
        kind,
        subscriber_id=subscriber_id,
        debit_account=grant_account(part.grant_id),
        credit_account=DESTINATIONS[kind],
        amount_microcredits=part.amount_microcredits,
        grant_id=part.grant_id,
        charge_id=charge_id,
        correction_id=correction_id,
        now_us=now_us,
    )


# --- what there is --------------------------------------------------------------------------------------------------


def available(books: Books, subscriber_id: str, now_us: int) -> int:
    """Microcredits that could be reserved now: what rolls over as soon as the wallet changes is among them."""
    credit = 0
    for grant in books.grants_of(subscriber_id):
        if grant.remaining_microcredits > 0 and grant.effective_time_us <= now_us:
            credit += lasting(books, grant, now_us)
    return credit


def lasting(books: Books, grant: Grant, now_us: int) -> int:
    """What of a grant's remaining credit stays in the wallet: all, or once it is over what rolls over."""
    if not is_expired(grant, now_us):
        return grant.remaining_microcredits
    if grant.rollover_microcredits_max == 0:
        return 0
    return max(0, rollable(grant, books.grants.get((grant.subscriber_id, rollover_grant_id(grant.grant_id))), now_us))


def check_room(books: Books, subscriber_id: str, amount_microcredits: int, now_us: int, *, more_grants: int) -> None:
    """RequestInvalid unless the wallet may hold so much more, and so many more grants with credit."""
    lasts = [
        amount
        for other in books.grants_of(subscriber_id)
        if other.remaining_microcredits > 0 and (amount := lasting(books, other, now_us)) > 0
    ]
    if len(lasts) + more_grants > GRANTS_WITH_CREDIT_MAX:
        problem = f"the wallet has {len(lasts)} grants with credit, of at most {GRANTS_WITH_CREDIT_MAX}"
        raise RequestInvalid(Violation("subscriber_id", problem))
    reserved = sum(
        authorization.reserved_microcredits
        for authorization in books.authorizations.rows.values()
        if authorization.subscriber_id == subscriber_id
    )
    if sum(lasts) + reserved + amount_microcredits > AMOUNT_MICROCREDITS_MAX:
        problem = f"the wallet would hold more than {AMOUNT_MICROCREDITS_MAX} microcredits"
        raise RequestInvalid(Violation("amount_microcredits", problem))


def spendable(wallet: Wallet, authorization: Authorization, available_microcredits: int) -> int:
    """What an authorization may still spend of what is available: nothing once it, or the wallet, is stopped."""
    if wallet.state is WalletState.SUSPENDED or authorization.revoke_time_us is not None:
        return 0
    return min(available_microcredits, cap_left(authorization))


def cap_left(authorization: Authorization) -> int:
    """What the cap leaves; without a cap, what keeps the authorization's counters in range."""
    cap = AMOUNT_MICROCREDITS_MAX if authorization.cap_microcredits is None else authorization.cap_microcredits
    return max(0, cap - authorization.charged_microcredits - authorization.reserved_microcredits)

"""The steps that decisions are made of: who pays, what may be spent, counters, expiry, and posting a grant's part."""

from metergate.core.books import Books
from metergate.core.changes import changed
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import ResourceNotFound
from metergate.core.grants import burn_key, is_expired
from metergate.core.reservation import Allocation, Reservation
from metergate.core.rows import (
    BREAKAGE_ACCOUNT,
    REVENUE_ACCOUNT,
    Authorization,
    TransferKind,
    Wallet,
    WalletState,
    grant_account,
)


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


def expire(books: Books, subscriber_id: str, now_us: int) -> None:
    """What remains of grants whose time is over becomes breakage, in burn order, whatever order they were loaded in."""
    grants = books.grants_of(subscriber_id)
    expired = [grant for grant in grants if grant.remaining_microcredits > 0 and is_expired(grant, now_us)]
    for grant in sorted(expired, key=burn_key):
        rest = Allocation(grant_id=grant.grant_id, amount_microcredits=grant.remaining_microcredits)
        books.change_remaining(subscriber_id, grant.grant_id, -grant.remaining_microcredits)
        post_from_grant(books, subscriber_id, TransferKind.EXPIRY, rest, "", now_us)


def post_from_grant(
    books: Books, subscriber_id: str, kind: TransferKind, part: Allocation, charge_id: str, now_us: int
) -> None:
    """Post what leaves a grant: to revenue if it was charged, else to breakage."""
    books.post(
        kind,
        subscriber_id=subscriber_id,
        debit_account=grant_account(part.grant_id),
        credit_account=REVENUE_ACCOUNT if kind is TransferKind.CHARGE else BREAKAGE_ACCOUNT,
        amount_microcredits=part.amount_microcredits,
        grant_id=part.grant_id,
        charge_id=charge_id,
        now_us=now_us,
    )


def spendable(wallet: Wallet, authorization: Authorization, available_microcredits: int) -> int:
    """What an authorization may still spend of what is available: nothing once it, or the wallet, is stopped."""
    if wallet.state is WalletState.SUSPENDED or authorization.revoke_time_us is not None:
        return 0
    return min(available_microcredits, cap_left(authorization))


def cap_left(authorization: Authorization) -> int:
    """What the cap leaves; without a cap, what keeps the authorization's counters in range."""
    cap = AMOUNT_MICROCREDITS_MAX if authorization.cap_microcredits is None else authorization.cap_microcredits
    return max(0, cap - authorization.charged_microcredits - authorization.reserved_microcredits)

"""Opening wallets and recording consents: each may be asked again, and answers as it first did (L4)."""

from dataclasses import replace

from metergate.core.books import Books
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import IdConflict, LedgerInvariantBroken, RequestInvalid, ResourceNotFound, Violation
from metergate.core.keys import SHOWN_CHARACTERS
from metergate.core.operations import AddAuthorization, AddSubscriber, Expire, RevokeAuthorization
from metergate.core.postings import expire
from metergate.core.rows import ApiKey, Authorization, Wallet, WalletState
from metergate.core.times import OUT_OF_RANGE, is_time_us


def add_subscriber(books: Books, operation: AddSubscriber) -> Wallet:
    """Open a wallet, or answer with the one that is open already; refusals: RequestInvalid (an id that is none)."""
    first = books.wallets.get(operation.wallet.subscriber_id)
    if first is not None:
        return first
    if operation.wallet.sequence != 0 or operation.wallet.state is not WalletState.ACTIVE:
        raise LedgerInvariantBroken(problem="a new wallet is ACTIVE and has moved nothing")  # a correction stops it
    books.wallets.add(operation.wallet.subscriber_id, operation.wallet)
    return operation.wallet


def expire_wallet(books: Books, operation: Expire) -> Wallet:
    """Move on what remains of grants whose time is over; refusals: ResourceNotFound (no such subscriber)."""
    if books.wallets.get(operation.subscriber_id) is None:
        raise ResourceNotFound(resource_name=f"subscribers/{operation.subscriber_id}")
    expire(books, operation.subscriber_id, operation.now_us)
    return books.wallets.rows[operation.subscriber_id]


def add_authorization(books: Books, operation: AddAuthorization) -> Authorization:
    """Record a consent; refusals: ResourceNotFound (no such subscriber), IdConflict, RequestInvalid."""
    authorization = operation.authorization
    if books.wallets.get(authorization.subscriber_id) is None:
        raise ResourceNotFound(resource_name=f"subscribers/{authorization.subscriber_id}")
    first = books.authorizations.get(authorization.authorization_id)
    if first is not None:
        if _consent(first) != _consent(authorization):
            raise IdConflict(resource="authorization", id=authorization.authorization_id)
        return first
    if authorization.charged_microcredits or authorization.reserved_microcredits:
        raise LedgerInvariantBroken(problem="a new authorization has spent already")
    cap = authorization.cap_microcredits
    if cap is not None and not 0 <= cap <= AMOUNT_MICROCREDITS_MAX:
        raise RequestInvalid(Violation("cap_microcredits", f"must be from 0 to {AMOUNT_MICROCREDITS_MAX}"))
    books.authorizations.add(authorization.authorization_id, authorization)
    return authorization


def revoke_authorization(books: Books, operation: RevokeAuthorization) -> Authorization:
    """End a consent, or answer with it if it was ended before; refusals: ResourceNotFound (no such authorization)."""
    authorization = books.authorizations.get(operation.authorization_id)
    if authorization is None:
        raise ResourceNotFound(resource_name=f"authorizations/{operation.authorization_id}")
    if authorization.revoke_time_us is not None:
        return authorization
    revoked = replace(authorization, revoke_time_us=operation.now_us)
    books.authorizations.change(authorization.authorization_id, revoked)
    return revoked


def check_key(key: ApiKey) -> None:
    """RequestInvalid unless a new key could be used, and keeps its secret."""
    if len(key.prefix) > SHOWN_CHARACTERS:
        raise RequestInvalid(Violation("prefix", f"must have at most {SHOWN_CHARACTERS} characters"))
    if key.expire_time_us is None:
        return
    if not is_time_us(key.expire_time_us):
        raise RequestInvalid(Violation("expire_time", OUT_OF_RANGE))
    if key.expire_time_us <= key.create_time_us:
        raise RequestInvalid(Violation("expire_time", "must be later than now"))


def _consent(authorization: Authorization) -> Authorization:
    """What makes an authorization that is asked for again the same."""
    return replace(
        authorization, charged_microcredits=0, reserved_microcredits=0, create_time_us=0, revoke_time_us=None
    )

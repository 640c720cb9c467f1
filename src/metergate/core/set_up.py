"""Opening wallets, recording consents and adding credit: each may be asked again, and answers as it first did (L4)."""

from dataclasses import replace

from metergate.core.books import Books
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import IdConflict, LedgerInvariantBroken, RequestInvalid, ResourceNotFound, Violation
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber
from metergate.core.rows import (
    GOODWILL_ACCOUNT,
    PAYMENTS_ACCOUNT,
    Authorization,
    Grant,
    GrantSource,
    TransferKind,
    Wallet,
    grant_account,
)

# What was paid for with money; every other source is the operator's goodwill.
PAID_SOURCES = frozenset({GrantSource.PLAN_CYCLE, GrantSource.TOP_UP})


def add_grant(books: Books, operation: AddGrant) -> Grant:
    """Add credits; refusals: ResourceNotFound (no such subscriber), IdConflict, RequestInvalid."""
    grant = operation.grant
    if books.wallets.get(grant.subscriber_id) is None:
        raise ResourceNotFound(resource_name=f"subscribers/{grant.subscriber_id}")
    first = books.grants.get((grant.subscriber_id, grant.grant_id))
    if first is not None:
        if _grant_content(first) != _grant_content(grant):
            raise IdConflict(resource="grant", id=grant.grant_id)
        return first
    _check_grant(books, grant)
    books.add_grant(grant)
    books.post(
        TransferKind.GRANT,
        subscriber_id=grant.subscriber_id,
        debit_account=PAYMENTS_ACCOUNT if grant.source in PAID_SOURCES else GOODWILL_ACCOUNT,
        credit_account=grant_account(grant.grant_id),
        amount_microcredits=grant.amount_microcredits,
        grant_id=grant.grant_id,
        charge_id="",
        now_us=grant.create_time_us,
    )
    return grant


def _check_grant(books: Books, grant: Grant) -> None:
    """RequestInvalid unless the grant is a valid one and the wallet's sum stays in range."""
    amount = grant.amount_microcredits
    if not 0 < amount <= AMOUNT_MICROCREDITS_MAX:
        raise RequestInvalid(Violation("amount_microcredits", f"must be from 1 to {AMOUNT_MICROCREDITS_MAX}"))
    if grant.remaining_microcredits != amount:
        raise RequestInvalid(Violation("remaining_microcredits", "a new grant has all its amount remaining"))
    if grant.expire_time_us is not None and grant.expire_time_us <= grant.effective_time_us:
        raise RequestInvalid(Violation("expire_time", "must be later than effective_time"))
    held = sum(other.remaining_microcredits for other in books.grants_of(grant.subscriber_id))
    reserved = sum(
        authorization.reserved_microcredits
        for authorization in books.authorizations.rows.values()
        if authorization.subscriber_id == grant.subscriber_id
    )
    if held + reserved + amount > AMOUNT_MICROCREDITS_MAX:
        problem = f"the wallet would hold more than {AMOUNT_MICROCREDITS_MAX} microcredits"
        raise RequestInvalid(Violation("amount_microcredits", problem))


def add_subscriber(books: Books, operation: AddSubscriber) -> Wallet:
    """Open a wallet, or answer with the one that is open already."""
    first = books.wallets.get(operation.wallet.subscriber_id)
    if first is not None:
        return first
    if operation.wallet.sequence != 0:
        raise LedgerInvariantBroken(problem="a new wallet's sequence is not 0")
    books.wallets.add(operation.wallet.subscriber_id, operation.wallet)
    return operation.wallet


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


def _grant_content(grant: Grant) -> Grant:
    """What makes a grant that is asked for again the same: all but what was spent and when it was asked for."""
    return replace(grant, remaining_microcredits=0, create_time_us=0)


def _consent(authorization: Authorization) -> Authorization:
    """What makes an authorization that is asked for again the same."""
    return replace(
        authorization, charged_microcredits=0, reserved_microcredits=0, create_time_us=0, revoke_time_us=None
    )

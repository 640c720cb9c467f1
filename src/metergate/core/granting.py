"""Adding credit to a wallet. A grant may be asked for again, and is answered as it first was (L4)."""

from dataclasses import replace

from metergate.core.books import Books
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import IdConflict, RequestInvalid, ResourceNotFound, Violation
from metergate.core.grants import is_expired
from metergate.core.operations import AddGrant
from metergate.core.postings import expire
from metergate.core.rows import Grant, TransferKind, funding_account, grant_account
from metergate.core.times import OUT_OF_RANGE, is_time_us

# Grants of one wallet that are not spent or expired. A reserve reads and sorts all of them: with this many it takes
# some milliseconds. A subscriber that buys one a day, each valid for a year, has 365.
GRANTS_WITH_CREDIT_MAX = 1_000


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
    expire(books, grant.subscriber_id, grant.create_time_us)
    books.add_grant(grant)
    books.post(
        TransferKind.GRANT,
        subscriber_id=grant.subscriber_id,
        debit_account=funding_account(grant.source),
        credit_account=grant_account(grant.grant_id),
        amount_microcredits=grant.amount_microcredits,
        grant_id=grant.grant_id,
        now_us=grant.create_time_us,
        grant_expire_time_us=grant.expire_time_us,
    )
    return grant


def _check_grant(books: Books, grant: Grant) -> None:
    """RequestInvalid unless the grant is a valid one and the wallet's sum stays in range."""
    amount = grant.amount_microcredits
    if not 0 < amount <= AMOUNT_MICROCREDITS_MAX:
        raise RequestInvalid(Violation("amount_microcredits", f"must be from 1 to {AMOUNT_MICROCREDITS_MAX}"))
    if grant.remaining_microcredits != amount:
        raise RequestInvalid(Violation("remaining_microcredits", "a new grant has all its amount remaining"))
    for name, time_us in (("effective_time", grant.effective_time_us), ("expire_time", grant.expire_time_us)):
        if time_us is not None and not is_time_us(time_us):
            raise RequestInvalid(Violation(name, OUT_OF_RANGE))
    if grant.expire_time_us is not None and grant.expire_time_us <= grant.effective_time_us:
        raise RequestInvalid(Violation("expire_time", "must be later than effective_time"))
    _check_room(books, grant)


def _check_room(books: Books, grant: Grant) -> None:
    others = [
        other
        for other in books.grants_of(grant.subscriber_id)
        if other.remaining_microcredits > 0 and not is_expired(other, grant.create_time_us)
    ]
    if len(others) >= GRANTS_WITH_CREDIT_MAX:
        problem = f"the wallet has {len(others)} grants with credit, of at most {GRANTS_WITH_CREDIT_MAX}"
        raise RequestInvalid(Violation("subscriber_id", problem))
    held = sum(other.remaining_microcredits for other in others)
    reserved = sum(
        authorization.reserved_microcredits
        for authorization in books.authorizations.rows.values()
        if authorization.subscriber_id == grant.subscriber_id
    )
    if held + reserved + grant.amount_microcredits > AMOUNT_MICROCREDITS_MAX:
        problem = f"the wallet would hold more than {AMOUNT_MICROCREDITS_MAX} microcredits"
        raise RequestInvalid(Violation("amount_microcredits", problem))


def _grant_content(grant: Grant) -> Grant:
    """What makes a grant that is asked for again the same: all but what was spent and when it was asked for."""
    return replace(grant, remaining_microcredits=0, create_time_us=0)

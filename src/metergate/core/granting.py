"""Adding credit to a wallet. A grant may be asked for again, and is answered as it first was (L4)."""

from dataclasses import replace

from metergate.core.books import Books
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import IdConflict, RequestInvalid, ResourceNotFound, Violation
from metergate.core.grants import rollover_expire_time
from metergate.core.operations import AddGrant
from metergate.core.postings import check_room, expire
from metergate.core.rows import Grant, GrantSource, TransferKind, funding_account, grant_account
from metergate.core.times import OUT_OF_RANGE, is_time_us


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
        added_grant=grant,
    )
    return grant


def _check_grant(books: Books, grant: Grant) -> None:
    """RequestInvalid unless the grant is a valid one and the wallet's sum stays in range."""
    amount = grant.amount_microcredits
    if not 0 < amount <= AMOUNT_MICROCREDITS_MAX:
        raise RequestInvalid(Violation("amount_microcredits", f"must be from 1 to {AMOUNT_MICROCREDITS_MAX}"))
    if grant.remaining_microcredits != amount or grant.reverse_time_us is not None:
        raise RequestInvalid(Violation("remaining_microcredits", "a new grant has all its amount remaining"))
    for name, time_us in (("effective_time", grant.effective_time_us), ("expire_time", grant.expire_time_us)):
        if time_us is not None and not is_time_us(time_us):
            raise RequestInvalid(Violation(name, OUT_OF_RANGE))
    if grant.expire_time_us is not None and grant.expire_time_us <= grant.effective_time_us:
        raise RequestInvalid(Violation("expire_time", "must be later than effective_time"))
    _check_rollover(grant)
    check_room(books, grant.subscriber_id, amount, grant.create_time_us, more_grants=1)


def _check_rollover(grant: Grant) -> None:
    if grant.rollover_microcredits_max == 0 and grant.rollover_seconds == 0:
        return
    if not 0 < grant.rollover_microcredits_max <= AMOUNT_MICROCREDITS_MAX:
        problem = f"must be from 1 to {AMOUNT_MICROCREDITS_MAX} where there are rollover_seconds"
        raise RequestInvalid(Violation("rollover_microcredits_max", problem))
    if grant.rollover_seconds <= 0:
        problem = "must be 1 or more where there is a rollover_microcredits_max"
        raise RequestInvalid(Violation("rollover_seconds", problem))
    if grant.expire_time_us is None:
        raise RequestInvalid(Violation("expire_time", "is missing: what never expires never rolls over"))
    if grant.source is GrantSource.ROLLOVER:
        raise RequestInvalid(Violation("rollover_microcredits_max", "what was rolled over does not roll over again"))
    if not is_time_us(rollover_expire_time(grant)):
        raise RequestInvalid(Violation("rollover_seconds", f"leads to a time that {OUT_OF_RANGE}"))


def _grant_content(grant: Grant) -> Grant:
    """What makes a grant that is asked for again the same: all but what became of it and when it was asked for."""
    return replace(grant, remaining_microcredits=0, create_time_us=0, reverse_time_us=None)

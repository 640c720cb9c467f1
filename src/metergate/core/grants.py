"""Which credits are spent first: lowest priority, then earliest expiry, then oldest, then by id.

What goes back, goes back in reverse, so that a request leaves the grants as if it had only ever taken its charge.
"""

from collections.abc import Iterable, Mapping, Sequence

from metergate.core.reservation import Allocation
from metergate.core.rows import Grant
from metergate.core.times import MICROSECONDS_PER_SECOND

# Marks the ids of grants that the ledger itself adds: no other may have it, so that their ids are certain to be free.
OWN_MARK = ":"

ROLLOVER = "rollover"
REFUND = "refund"
REFUND_OF = "refund-of-"  # before the id of the grant that had paid


def rollover_grant_id(grant_id: str) -> str:
    """The grant that what is left of this one goes on in."""
    return f"{ROLLOVER}{OWN_MARK}{grant_id}"


def refund_grant_id(refund_id: str, origin_grant_id: str) -> str:
    """The grant for what an expired one had paid that carried on the credit of the origin, if it had one."""
    kind = f"{REFUND_OF}{origin_grant_id}" if origin_grant_id else REFUND
    return f"{kind}{OWN_MARK}{refund_id}"


def refund_grant_id_range(origin_grant_id: str) -> tuple[str, str]:
    """The ids of all refund grants of an origin are from the first of these, and below the second."""
    kind = f"{REFUND_OF}{origin_grant_id}"
    return f"{kind}{OWN_MARK}", f"{kind}{chr(ord(OWN_MARK) + 1)}"


def adjustment_grant_id(adjustment_id: str) -> str:
    """The grant of credit that was given by hand."""
    return f"adjustment{OWN_MARK}{adjustment_id}"


def origin_of(grant_id: str) -> str:
    """The grant whose credit this one carries on: itself, or what it rolled over from, or what had paid a refund.

    "" if there was none, as for what was given by hand. A payment that is taken back takes the credit wherever it is.
    """
    kind, mark, source = grant_id.partition(OWN_MARK)
    if not mark:
        return grant_id
    if kind == ROLLOVER:
        return source
    return kind.removeprefix(REFUND_OF) if kind.startswith(REFUND_OF) else ""


def burn_key(grant: Grant) -> tuple[int, bool, int, int, str]:
    """Sorts grants in burn order; a grant that never expires comes after all that do."""
    never = grant.expire_time_us is None
    return (grant.priority, never, grant.expire_time_us or 0, grant.create_time_us, grant.grant_id)


def is_expired(grant: Grant, now_us: int) -> bool:
    """Whether its time is over; what remains of it is breakage."""
    return grant.expire_time_us is not None and grant.expire_time_us <= now_us


def is_spendable(grant: Grant, now_us: int) -> bool:
    """Whether it is in effect, not expired, and has credit left."""
    return grant.remaining_microcredits > 0 and grant.effective_time_us <= now_us and not is_expired(grant, now_us)


def rollover_expire_time(grant: Grant) -> int:
    """When the rollover grant of one that expires and rolls over is over itself."""
    assert grant.expire_time_us is not None, grant
    return grant.expire_time_us + grant.rollover_seconds * MICROSECONDS_PER_SECOND


def rollable(grant: Grant, rollover: Grant | None, now_us: int) -> int:
    """How much of what remains of an expired grant goes on in its rollover grant, which is there already or not.

    As much as the rule allows beside what went before; nothing once that one is over too, or the grant was reversed.
    """
    if grant.rollover_microcredits_max == 0 or grant.reverse_time_us is not None:
        return 0
    if rollover_expire_time(grant) <= now_us:
        return 0
    before = 0 if rollover is None else rollover.amount_microcredits
    return min(grant.rollover_microcredits_max - before, grant.remaining_microcredits)


def allocate(grants: Iterable[Grant], amount_microcredits: int, now_us: int) -> tuple[Allocation, ...]:
    """What to take from which grant, in burn order. ValueError if the spendable grants hold less than the amount."""
    allocations: list[Allocation] = []
    missing = amount_microcredits
    for grant in sorted((grant for grant in grants if is_spendable(grant, now_us)), key=burn_key):
        if missing == 0:
            break
        part = min(missing, grant.remaining_microcredits)
        allocations.append(Allocation(grant_id=grant.grant_id, amount_microcredits=part))
        missing -= part
    if missing > 0:
        raise ValueError(f"{missing} microcredits too few to allocate {amount_microcredits}")
    return tuple(allocations)


def merge(
    earlier: Sequence[Allocation], more: Sequence[Allocation], grants: Mapping[str, Grant]
) -> tuple[Allocation, ...]:
    """Both lists as one allocation a grant, in burn order; ``grants`` has every grant they name, by id."""
    amounts: dict[str, int] = {}
    for allocation in (*earlier, *more):
        amounts[allocation.grant_id] = amounts.get(allocation.grant_id, 0) + allocation.amount_microcredits
    ordered = sorted(amounts, key=lambda grant_id: burn_key(grants[grant_id]))
    return tuple(Allocation(grant_id=grant_id, amount_microcredits=amounts[grant_id]) for grant_id in ordered)


def give_back(
    allocations: Sequence[Allocation], amount_microcredits: int
) -> tuple[tuple[Allocation, ...], tuple[Allocation, ...]]:
    """What stays and what goes back if this much of the allocations is returned, the last drawn first.

    The first result is in burn order, the second in reverse. ValueError if the allocations hold less than the amount.
    """
    kept: list[Allocation] = []
    returned: list[Allocation] = []
    missing = amount_microcredits
    for allocation in reversed(allocations):
        part = min(missing, allocation.amount_microcredits)
        missing -= part
        rest = allocation.amount_microcredits - part
        if part > 0:
            returned.append(Allocation(grant_id=allocation.grant_id, amount_microcredits=part))
        if rest > 0:
            kept.append(Allocation(grant_id=allocation.grant_id, amount_microcredits=rest))
    if missing > 0:
        raise ValueError(f"{missing} microcredits too few to give back {amount_microcredits}")
    return tuple(reversed(kept)), tuple(returned)

"""Burn order, and giving back in its reverse."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import NOW_US, a_grant

from metergate.core.grants import allocate, burn_key, give_back, is_spendable, merge
from metergate.core.reservation import Allocation
from metergate.core.rows import Grant

GRANTS = st.lists(
    st.builds(
        lambda amount, left, priority, expire, start, age: (
            a_grant(
                amount=amount + left,
                remaining_microcredits=left,
                priority=priority,
                expire_time_us=expire,
                effective_time_us=start,
                create_time_us=age,
            ).grant
        ),
        st.integers(1, 50),
        st.integers(0, 50),
        st.integers(0, 2),
        st.none() | st.integers(NOW_US - 1, NOW_US + 2),
        st.sampled_from([0, NOW_US, NOW_US + 1]),
        st.integers(0, 2),
    ),
    max_size=8,
).map(lambda grants: [_named(grant, number) for number, grant in enumerate(grants)])


def spendable(grants: list[Grant]) -> int:
    return sum(grant.remaining_microcredits for grant in grants if is_spendable(grant, NOW_US))


def _named(grant: Grant, number: int) -> Grant:
    return replace(grant, grant_id=f"g{number}")


def test_burn_order_is_priority_then_expiry_then_age_then_id() -> None:
    ordered = [
        a_grant("z", priority=1).grant,
        a_grant("y", priority=2, expire_time_us=NOW_US + 1).grant,
        a_grant("x", priority=2, expire_time_us=NOW_US + 2).grant,
        a_grant("w", priority=2, create_time_us=1).grant,
        a_grant("u", priority=2, create_time_us=2).grant,
        a_grant("v", priority=2, create_time_us=2).grant,
    ]
    assert sorted([*ordered[3:], *ordered[:3]], key=burn_key) == ordered


@given(GRANTS, st.integers(0, 300))
def test_an_allocation_takes_the_amount_from_spendable_grants_in_burn_order(grants: list[Grant], amount: int) -> None:
    if amount > spendable(grants):
        with pytest.raises(ValueError, match="too few"):
            allocate(grants, amount, NOW_US)
        return
    by_id = {grant.grant_id: grant for grant in grants}
    taken = allocate(grants, amount, NOW_US)
    used = [by_id[part.grant_id] for part in taken]
    assert sum(part.amount_microcredits for part in taken) == amount
    assert used == sorted(used, key=burn_key)
    assert all(grant.effective_time_us <= NOW_US for grant in used)
    assert all(grant.expire_time_us is None or grant.expire_time_us > NOW_US for grant in used)
    assert all(part.amount_microcredits == by_id[part.grant_id].remaining_microcredits for part in taken[:-1])


@given(GRANTS, st.data())
def test_what_stays_after_giving_back_is_what_a_smaller_allocation_would_be(
    grants: list[Grant], data: st.DataObject
) -> None:
    whole = data.draw(st.integers(0, spendable(grants)))
    part = data.draw(st.integers(0, whole))
    taken = allocate(grants, whole, NOW_US)
    kept, returned = give_back(taken, whole - part)
    assert kept == allocate(grants, part, NOW_US)
    assert sum(item.amount_microcredits for item in returned) == whole - part
    positions = [[item.grant_id for item in taken].index(item.grant_id) for item in returned]
    assert positions == sorted(positions, reverse=True)


def test_more_than_was_allocated_cannot_go_back() -> None:
    with pytest.raises(ValueError, match="too few"):
        give_back([Allocation(grant_id="g", amount_microcredits=5)], 6)


def test_merged_allocations_are_one_a_grant_in_burn_order() -> None:
    grants = {name: a_grant(name, priority=priority).grant for name, priority in (("b", 1), ("a", 2))}
    held = [Allocation(grant_id="a", amount_microcredits=5)]
    more = [Allocation(grant_id="b", amount_microcredits=3), Allocation(grant_id="a", amount_microcredits=2)]
    merged = merge(held, more, grants)
    assert [(part.grant_id, part.amount_microcredits) for part in merged] == [("b", 3), ("a", 7)]

"""An owner is dead once it has not said for a whole lease, on the watcher's clock, that it lives."""

from metergate.core.leases import LEASE_SECONDS, Leases
from metergate.core.reservation import Owner

A, B = Owner(owner_id="a", epoch=1), Owner(owner_id="b", epoch=2)


def test_an_owner_that_beats_lives_and_one_that_does_not_is_dead_after_a_lease() -> None:
    leases = Leases()
    assert leases.dead({A: 1, B: 1}, 100.0) == set()
    assert leases.dead({A: 2, B: 1}, 100.0 + LEASE_SECONDS - 0.1) == set()
    assert leases.dead({A: 2, B: 1}, 100.0 + LEASE_SECONDS) == {B}


def test_a_heartbeat_of_a_clock_that_went_back_is_one_too() -> None:
    leases = Leases()
    leases.dead({A: 9}, 0.0)
    assert leases.dead({A: 3}, LEASE_SECONDS) == set()


def test_an_owner_that_is_not_there_any_more_is_forgotten() -> None:
    leases = Leases()
    leases.dead({A: 1}, 0.0)
    leases.dead({}, 1.0)
    assert leases.dead({A: 1}, LEASE_SECONDS) == set()
    assert leases.dead({A: 1}, 2 * LEASE_SECONDS) == {A}

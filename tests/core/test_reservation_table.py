"""A closed reservation never changes again."""

import pytest

from metergate.core.errors import TransitionInvalid
from metergate.core.reservation import ReservationEvent, ReservationState, next_state

ALLOWED = {
    ("ACTIVE", "CAPTURE"): "ACTIVE",
    ("ACTIVE", "SETTLE"): "SETTLED",
    ("ACTIVE", "RELEASE"): "RELEASED",
}


@pytest.mark.parametrize("state", ReservationState)
@pytest.mark.parametrize("event", ReservationEvent)
def test_every_transition_is_in_the_table_or_an_error(state: ReservationState, event: ReservationEvent) -> None:
    expected = ALLOWED.get((state.value, event.value))
    if expected is None:
        with pytest.raises(TransitionInvalid):
            next_state(state, event)
    else:
        assert next_state(state, event).value == expected

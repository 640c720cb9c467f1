"""Who is left out, for how long, and how it comes back: decided from events, time and chance alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.standing import (
    EJECTION_SECONDS,
    EJECTION_SECONDS_MAX,
    EJECTION_SPREAD,
    FAILURES_MAX,
    RETURN_SECONDS,
    RETURN_SHARE_MIN,
    Event,
    Standing,
    State,
    after,
    at,
    share,
)


def told(standing: Standing, *events: Event, now: float = 0.0, chance: float = 0.0) -> Standing:
    """The standing after events that all belong to it."""
    for event in events:
        standing = after(standing, event, episode=standing.episode, now_seconds=now, chance=chance)
    return standing


FAILURES = [Event.FAILED] * FAILURES_MAX
EJECTED = told(Standing(), *FAILURES)
ON_TRIAL = at(EJECTED, EJECTION_SECONDS)
RETURNING = told(ON_TRIAL, Event.BEGAN, now=EJECTION_SECONDS)
BACK_SECONDS = EJECTION_SECONDS + RETURN_SECONDS


def test_failures_in_a_row_eject_and_one_less_does_not() -> None:
    assert told(Standing(), *FAILURES[1:]).state is State.TAKING
    assert EJECTED.state is State.EJECTED
    assert EJECTED.until_seconds == EJECTION_SECONDS


def test_a_whole_answer_between_failures_forgives_them_and_a_mere_beginning_does_not() -> None:
    assert told(Standing(), *FAILURES[1:], Event.ANSWERED, Event.FAILED).failures == 1
    assert told(Standing(), *FAILURES[1:], Event.BEGAN, Event.FAILED).state is State.EJECTED


def test_a_backend_that_takes_nothing_is_left_out_though_it_is_the_last() -> None:
    assert told(Standing(), *[Event.TURNED_AWAY] * FAILURES_MAX) == EJECTED
    assert told(ON_TRIAL, Event.TURNED_AWAY).state is told(RETURNING, Event.TURNED_AWAY, now=3.0).state is State.EJECTED


@pytest.mark.parametrize("standing", [Standing(), ON_TRIAL, RETURNING])
def test_failures_that_requests_may_have_caused_never_leave_out_the_last_backend(standing: Standing) -> None:
    assert told(standing, *[Event.FAILED_LAST] * (3 * FAILURES_MAX), now=3.0) == at(standing, 3.0)


def test_after_its_time_it_is_tried_and_its_first_token_lets_its_share_grow_back() -> None:
    assert at(EJECTED, EJECTION_SECONDS - 0.001).state is State.EJECTED
    assert ON_TRIAL.state is State.ON_TRIAL
    assert RETURNING.state is State.RETURNING
    shares = [share(RETURNING, EJECTION_SECONDS + part * RETURN_SECONDS) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shares == [RETURN_SHARE_MIN, 0.25, 0.5, 0.75, 1.0]
    assert at(RETURNING, BACK_SECONDS) == Standing(until_seconds=BACK_SECONDS, episode=1)


@pytest.mark.parametrize("standing", [ON_TRIAL, RETURNING])
def test_one_failure_on_its_way_back_ejects_it_for_longer(standing: Standing) -> None:
    again = told(standing, Event.FAILED, now=5.0)
    assert again.state is State.EJECTED
    assert again.until_seconds == 5.0 + 2 * EJECTION_SECONDS


def test_each_ejection_in_a_row_doubles_up_to_the_longest_and_a_whole_return_begins_anew() -> None:
    now, standing, seconds = 0.0, Standing(), []
    for _ in range(40):
        standing = told(standing, *FAILURES, now=now)
        seconds.append(standing.until_seconds - now)
        now = standing.until_seconds
    assert seconds[:4] == [EJECTION_SECONDS * 2**power for power in range(4)]
    assert seconds[-1] == EJECTION_SECONDS_MAX
    returned = at(told(standing, Event.BEGAN, now=now), now + RETURN_SECONDS)
    assert returned.state is State.TAKING
    assert told(returned, *FAILURES, now=now + RETURN_SECONDS).until_seconds == now + RETURN_SECONDS + EJECTION_SECONDS


def test_chance_shortens_an_ejection_so_that_gateways_do_not_return_together() -> None:
    ends = [told(Standing(), *FAILURES, chance=chance).until_seconds for chance in (0.0, 0.5, 0.999)]
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] > EJECTION_SECONDS * (1 - EJECTION_SPREAD)


@pytest.mark.parametrize("event", list(Event))
def test_what_was_sent_before_an_ejection_says_nothing_new(event: Event) -> None:
    for standing in (EJECTED, ON_TRIAL, RETURNING):
        assert after(standing, event, episode=0, now_seconds=3.0, chance=0.0) == standing


def test_a_backend_that_was_down_and_is_up_again_is_tried_at_once() -> None:
    assert told(EJECTED, Event.RESTARTED, now=0.5).state is State.ON_TRIAL
    assert told(told(Standing(), *FAILURES[1:]), Event.RESTARTED).failures == 0


@given(
    st.lists(st.tuples(st.sampled_from(Event), st.integers(0, 3), st.floats(0, 100), st.floats(0, 0.999)), max_size=80)
)
def test_whatever_happens_it_is_tried_again_within_the_longest_ejection(
    happened: list[tuple[Event, int, float, float]],
) -> None:
    standing, now = Standing(), 0.0
    for event, episodes_ago, seconds, chance in happened:
        now += seconds
        episode = max(0, standing.episode - episodes_ago)
        standing = after(standing, event, episode=episode, now_seconds=now, chance=chance)
        assert 0 < share(standing, now) <= 1
        assert at(standing, now + EJECTION_SECONDS_MAX).state is not State.EJECTED

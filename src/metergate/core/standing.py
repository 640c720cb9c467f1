"""How a backend has served of late, and so what it is given: a table of states and what happens to them.

A backend that fails again and again is left out for a while, longer each time. Then one request tries it; once that
gets a first token, its share grows back to the whole. Requests must not be able to take every backend from the others:
what a request may have done itself leaves a backend out only while another is left. Pure: time and chance come in as
arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

# One failure is an accident and costs its request a failover; five in a row, with no whole answer between, are not.
FAILURES_MAX = 5

# The first time it is left out for as long as a process takes to restart, then for twice as long each time, up to what
# loading a large model takes: a backend that is down for an hour is then tried sixty times, not a thousand.
EJECTION_SECONDS = 2.0
EJECTION_SECONDS_MAX = 60.0

# So much of an ejection is chance, so that many gateways do not come back to a backend in the same instant.
EJECTION_SPREAD = 0.25

# How long its share grows after its return: caches are cold, and a model that was just loaded is slow at first.
RETURN_SECONDS = 10.0
RETURN_SHARE_MIN = 0.1


class State(StrEnum):
    """What a backend is given."""

    TAKING = "TAKING"  # its whole share
    EJECTED = "EJECTED"  # nothing
    ON_TRIAL = "ON_TRIAL"  # one request at a time, until one gets its first token
    RETURNING = "RETURNING"  # more and more


class Event(StrEnum):
    """What happens to a backend."""

    BEGAN = "BEGAN"  # an answer's first token came
    ANSWERED = "ANSWERED"  # an answer came whole, or a refusal of the request as such
    FAILED = "FAILED"  # an answer did not come, or broke off; perhaps because of what was asked
    FAILED_LAST = "FAILED_LAST"  # the same of the only backend that is left: without it nobody would be served
    TURNED_AWAY = "TURNED_AWAY"  # it took no request: whatever had been asked
    RESTARTED = "RESTARTED"  # a look finds it up that found it down before


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A backend's state; times in seconds of one clock that never goes back."""

    state: State = State.TAKING
    until_seconds: float = 0.0  # EJECTED: its trial begins then; RETURNING: it has its whole share then
    failures: int = 0  # in a row
    ejections: int = 0  # in a row, with no whole return between
    episode: int = 0  # how often it was ejected, ever


def at(standing: Standing, now_seconds: float) -> Standing:
    """The standing at a time, if nothing happens until then."""
    if standing.state is State.TAKING or now_seconds < standing.until_seconds:
        return standing
    if standing.state is State.EJECTED:
        return replace(standing, state=State.ON_TRIAL)
    if standing.state is State.RETURNING:
        return replace(standing, state=State.TAKING, failures=0, ejections=0)
    return standing


def after(standing: Standing, event: Event, *, episode: int, now_seconds: float, chance: float) -> Standing:
    """The standing after an event; ``episode`` is that of the standing when its request was sent, ``chance`` in [0, 1).

    What was sent before an ejection says nothing new: eight streams that break at once are one ejection.
    """
    if episode != standing.episode:
        return standing
    now = at(standing, now_seconds)
    return _AFTER[now.state, event](now, now_seconds, chance)


def share(standing: Standing, now_seconds: float) -> float:
    """The part of its weight that a backend is given now, in (0, 1]."""
    now = at(standing, now_seconds)
    if now.state is State.RETURNING:
        return max(RETURN_SHARE_MIN, 1.0 - (now.until_seconds - now_seconds) / RETURN_SECONDS)
    return RETURN_SHARE_MIN if now.state is State.ON_TRIAL else 1.0


def _same(standing: Standing, now_seconds: float, chance: float) -> Standing:
    return standing


def _forget_failures(standing: Standing, now_seconds: float, chance: float) -> Standing:
    return replace(standing, failures=0) if standing.failures else standing


def _count_failure(standing: Standing, now_seconds: float, chance: float) -> Standing:
    counted = replace(standing, failures=standing.failures + 1)
    return _eject(counted, now_seconds, chance) if counted.failures >= FAILURES_MAX else counted


def _eject(standing: Standing, now_seconds: float, chance: float) -> Standing:
    seconds = min(EJECTION_SECONDS * 2.0**standing.ejections, EJECTION_SECONDS_MAX)
    return Standing(
        state=State.EJECTED,
        until_seconds=now_seconds + seconds * (1.0 - EJECTION_SPREAD * chance),
        # Beyond this many the time has long reached its maximum.
        ejections=min(standing.ejections + 1, 32),
        episode=standing.episode + 1,
    )


def _try(standing: Standing, now_seconds: float, chance: float) -> Standing:
    return replace(standing, state=State.ON_TRIAL, until_seconds=now_seconds)


def _return(standing: Standing, now_seconds: float, chance: float) -> Standing:
    return replace(standing, state=State.RETURNING, until_seconds=now_seconds + RETURN_SECONDS)


_AFTER: dict[tuple[State, Event], Callable[[Standing, float, float], Standing]] = {
    (State.TAKING, Event.BEGAN): _same,
    (State.TAKING, Event.ANSWERED): _forget_failures,
    (State.TAKING, Event.FAILED): _count_failure,
    (State.TAKING, Event.FAILED_LAST): _same,
    (State.TAKING, Event.TURNED_AWAY): _count_failure,
    (State.TAKING, Event.RESTARTED): _forget_failures,
    (State.EJECTED, Event.BEGAN): _same,
    (State.EJECTED, Event.ANSWERED): _same,
    (State.EJECTED, Event.FAILED): _same,
    (State.EJECTED, Event.FAILED_LAST): _same,
    (State.EJECTED, Event.TURNED_AWAY): _same,
    (State.EJECTED, Event.RESTARTED): _try,
    (State.ON_TRIAL, Event.BEGAN): _return,
    (State.ON_TRIAL, Event.ANSWERED): _return,
    (State.ON_TRIAL, Event.FAILED): _eject,
    (State.ON_TRIAL, Event.FAILED_LAST): _same,
    (State.ON_TRIAL, Event.TURNED_AWAY): _eject,
    (State.ON_TRIAL, Event.RESTARTED): _same,
    (State.RETURNING, Event.BEGAN): _same,
    (State.RETURNING, Event.ANSWERED): _same,
    (State.RETURNING, Event.FAILED): _eject,
    (State.RETURNING, Event.FAILED_LAST): _same,
    (State.RETURNING, Event.TURNED_AWAY): _eject,
    (State.RETURNING, Event.RESTARTED): _same,
}

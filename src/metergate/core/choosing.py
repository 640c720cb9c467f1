"""Which backend of a model takes a request: the least loaded one for its weight, of those that can take any.

All of them are looked at, rather than two at random: a gateway knows exactly what it has sent to each, and a model has
at most 64. Two at random are for choosers that share stale counts; here they would only send more to slow backends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metergate.core.standing import Standing, State, at, share


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A backend that a request may go to, as it is now."""

    backend_id: str
    weight: int  # >= 0; 0: it stands by, and takes what no other can
    outstanding: int  # requests that it works on
    trials: int  # of them, those that were sent since it was last ejected
    requests_max: int  # >= 1; the most that it works on at once
    standing: Standing
    is_up: bool  # what the last look found; True before the first


@dataclass(frozen=True, slots=True)
class Take:
    """It goes to this backend."""

    backend_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """All that could take it are full: it waits for the first of these that has room."""

    backend_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllOut:
    """No backend can take it."""

    return_seconds: float  # from now, until the first of them is tried again


def choose(candidates: Sequence[Candidate], *, now_seconds: float, chance: float) -> Take | Wait | AllOut:
    """Choose among at least one; ``chance``, in [0, 1), decides between equals, by weight.

    A backend that the last look found down is tried where no other is left: the look may err, the request will tell.
    """
    taking = [candidate for candidate in candidates if _state(candidate, now_seconds) is not State.EJECTED]
    if not taking:
        return AllOut(min(candidate.standing.until_seconds for candidate in candidates) - now_seconds)
    up = [candidate for candidate in taking if candidate.is_up] or taking
    free = [candidate for candidate in up if has_room(candidate, now_seconds)]
    if not free:
        return Wait(tuple(candidate.backend_id for candidate in up))
    if len(free) == 1:
        return Take(free[0].backend_id)
    weighted = [candidate for candidate in free if candidate.weight] or free
    shares = [max(candidate.weight, 1) * share(candidate.standing, now_seconds) for candidate in weighted]
    loads = [candidate.outstanding / part for candidate, part in zip(weighted, shares, strict=True)]
    least = min(loads)
    return Take(
        _draw(
            [
                (candidate.backend_id, part)
                for candidate, part, load in zip(weighted, shares, loads, strict=True)
                if load == least
            ],
            chance,
        )
    )


def is_last(backend_id: str, candidates: Sequence[Candidate], now_seconds: float) -> bool:
    """Whether no other of a model's backends is left: all are left out, or were seen down."""
    return not any(
        other.backend_id != backend_id and other.is_up and _state(other, now_seconds) is not State.EJECTED
        for other in candidates
    )


def has_room(candidate: Candidate, now_seconds: float) -> bool:
    """Whether it may be given one request more, ejected or not. One on trial works on a single one."""
    if _state(candidate, now_seconds) is State.ON_TRIAL and candidate.trials:
        return False
    return candidate.outstanding < candidate.requests_max


def _state(candidate: Candidate, now_seconds: float) -> State:
    return at(candidate.standing, now_seconds).state


def _draw(parts: Sequence[tuple[str, float]], chance: float) -> str:
    """One of them, each as likely as its part of the whole."""
    left = chance * sum(part for _, part in parts)
    for backend_id, part in parts:
        left -= part
        if left < 0:
            return backend_id
    return parts[-1][0]

"""The backends, what each is doing now, and who waits for it: the one place where that is known.

Where a request goes is decided in ``core.choosing``, who is left out in ``core.standing``; here it is done. A place
at a backend is handed on at the instant it becomes free, to the request that has waited longest.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from metergate.core.choosing import AllOut, Candidate, Take, Wait, choose, has_room
from metergate.core.errors import BackendUnavailable
from metergate.core.standing import Event, Standing, State, after, at
from metergate.ports import Backend, PoolObserver

logger = logging.getLogger(__name__)

# What takes this long to say that it is well would keep requests waiting too.
LOOK_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What one backend is asked to do at most."""

    requests_max: int  # >= 1, at once
    queue_max: int  # >= 0; requests that wait for it
    queue_seconds_max: float  # > 0; how long each of them waits


class Health(StrEnum):
    """What is known of a backend, for the operator."""

    UP = "up"
    RETURNING = "returning"  # tried, or given more and more, after it was left out
    EJECTED = "ejected"  # left out, because it failed again and again
    DOWN = "down"  # the last look did not reach it

    @property
    def is_usable(self) -> bool:
        """Whether requests go there."""
        return self in (Health.UP, Health.RETURNING)


class Member:
    """One backend in the pool; the models that it runs share it."""

    def __init__(self, backend: Backend, limits: PoolLimits) -> None:
        self.backend = backend
        self.limits = limits
        self.standing = Standing()
        self.is_up = True  # until a look finds something else: a gateway that starts must not refuse
        self.outstanding = 0
        self.trials = 0  # of them, those that were sent since it was last ejected
        self.queue: dict[_Waiter, None] = {}  # in order of arrival

    def candidate(self, weight: int) -> Candidate:
        """What a choice is made from."""
        return Candidate(
            backend_id=self.backend.backend_id,
            weight=weight,
            outstanding=self.outstanding,
            requests_max=self.limits.requests_max,
            trials=self.trials,
            standing=self.standing,
            is_up=self.is_up,
        )

    def health(self, now_seconds: float) -> Health:
        """What is known of it now."""
        state = at(self.standing, now_seconds).state
        if state is State.EJECTED:
            return Health.EJECTED
        if not self.is_up:
            return Health.DOWN
        return Health.UP if state is State.TAKING else Health.RETURNING


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request in the queues of all members that could take it."""

    members: Sequence[Member]
    place: "asyncio.Future[Place | None]"  # None: look again, one of the members was ejected


class Place:
    """A request's place at a backend, to be left on every way out."""

    __slots__ = ("_episode", "_is_left", "_member", "_pool")

    def __init__(self, pool: "Pool", member: Member) -> None:
        self._pool = pool
        self._member = member
        self._episode = member.standing.episode
        self._is_left = False
        member.outstanding += 1
        member.trials += 1

    @property
    def backend(self) -> Backend:
        """The backend."""
        return self._member.backend

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def note(self, event: Event) -> None:
        """Say what became of the request there."""
        self._pool.note(self._member, event, self._episode)

    def leave(self) -> None:
        """Make room for another; a second time it does nothing."""
        if self._is_left:
            return
        self._is_left = True
        self._member.outstanding -= 1
        if self._episode == self._member.standing.episode:
            self._member.trials -= 1
        self._pool.hand_out(self._member)


class Pool:
    """Every backend. All methods are called in one event loop."""

    def __init__(
        self,
        members: Mapping[str, Member],
        *,
        monotonic: Callable[[], float],
        chance: Callable[[], float],
        observer: PoolObserver,
    ) -> None:
        """``members`` are by backend id; ``chance`` returns a number in [0, 1)."""
        self.members = members
        self._monotonic = monotonic
        self._chance = chance
        self._observer = observer

    # --- a request's way --------------------------------------------------------------------------------------------

    async def take(self, model_id: str, weights: Mapping[str, int], tried: Sequence[str]) -> Place:
        """A place at one of these backends that was not tried yet; waits where all are full.

        BackendUnavailable, with the time until one can be tried again where that is known, if there is none.
        """
        untried = {backend_id: weight for backend_id, weight in weights.items() if backend_id not in tried}
        choice = self._choose(untried or weights)
        if untried and isinstance(choice, Take):
            return Place(self, self.members[choice.backend_id])
        if untried and isinstance(choice, Wait):
            began_seconds = self._monotonic()
            place = await self._wait(untried, choice)
            self._observer.waited(model_id, self._monotonic() - began_seconds, has_place=place is not None)
            if place is not None:
                return place
            choice = self._choose(untried)
        raise _unavailable(model_id, choice, was_tried=not untried)

    def _choose(self, weights: Mapping[str, int]) -> Take | Wait | AllOut:
        candidates = [self.members[backend_id].candidate(weight) for backend_id, weight in weights.items()]
        return choose(candidates, now_seconds=self._monotonic(), chance=self._chance())

    async def _wait(self, weights: Mapping[str, int], choice: Take | Wait | AllOut) -> Place | None:
        """Wait for a place; None if the queues are full, or it took too long, or all were ejected meanwhile."""
        seconds_max = max(self.members[backend_id].limits.queue_seconds_max for backend_id in weights)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while isinstance(choice, Wait):
                    members = [self.members[backend_id] for backend_id in choice.backend_ids]
                    queued_at = [member for member in members if len(member.queue) < member.limits.queue_max]
                    if not queued_at:
                        return None
                    place = await self._stand_in_line(queued_at)
                    if place is not None:
                        return place
                    choice = self._choose(weights)
                if isinstance(choice, Take):
                    return Place(self, self.members[choice.backend_id])
        return None

    async def _stand_in_line(self, members: Sequence[Member]) -> Place | None:
        waiter = _Waiter(members, asyncio.get_running_loop().create_future())
        for member in members:
            member.queue[waiter] = None
        place: Place | None = None
        try:
            place = await waiter.place
        finally:
            _leave_queues(waiter)
            if place is None and waiter.place.done() and not waiter.place.cancelled():
                # It was called in the instant in which it went away.
                left = waiter.place.result()
                if left is not None:
                    left.leave()
        return place

    # --- what becomes of it -----------------------------------------------------------------------------------------

    def note(self, member: Member, event: Event, episode: int) -> None:
        """Judge a member anew."""
        before, now_seconds = member.standing, self._monotonic()
        member.standing = after(before, event, episode=episode, now_seconds=now_seconds, chance=self._chance())
        if member.standing.episode != before.episode:
            self._ejected(member, now_seconds)
        elif member.standing is not before:
            self.hand_out(member)

    def _ejected(self, member: Member, now_seconds: float) -> None:
        member.trials = 0
        seconds = member.standing.until_seconds - now_seconds
        logger.warning("backend %s failed again and again: left out for %.1f s", member.backend.backend_id, seconds)
        self._observer.ejected(member.backend.backend_id)
        for waiter in tuple(member.queue):
            _leave_queues(waiter)
            if not waiter.place.done():
                waiter.place.set_result(None)

    def hand_out(self, member: Member) -> None:
        """Give what room there is to those who wait."""
        while member.queue and self._takes(member):
            waiter = next(iter(member.queue))
            _leave_queues(waiter)
            if not waiter.place.done():
                waiter.place.set_result(Place(self, member))

    def _takes(self, member: Member) -> bool:
        return has_room(member.candidate(weight=1), self._monotonic())

    # --- looks ------------------------------------------------------------------------------------------------------

    async def look(self) -> Mapping[str, Health]:
        """Look whether each backend is up, all at once, within ``LOOK_SECONDS_MAX``; return what is known of them."""
        async with asyncio.TaskGroup() as looking:
            for member in self.members.values():
                looking.create_task(self._look(member))
        return self.health()

    def health(self) -> Mapping[str, Health]:
        """What is known of each backend now, by id."""
        now_seconds = self._monotonic()
        return {backend_id: member.health(now_seconds) for backend_id, member in self.members.items()}

    async def _look(self, member: Member) -> None:
        was_up = member.is_up
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                member.is_up = await member.backend.is_up()
        except Exception:  # noqa: BLE001 - a defect of an adapter must not end the looking
            member.is_up = False
        if member.is_up and not was_up:
            self.note(member, Event.RESTARTED, member.standing.episode)


class Candidates:
    """The backends of one model, for one request: each is taken once at most."""

    def __init__(self, pool: Pool, model_id: str, weights: Mapping[str, int]) -> None:
        """``weights`` are by backend id."""
        self._pool = pool
        self._model_id = model_id
        self._weights = weights
        self._tried: list[str] = []

    async def take(self) -> Place:
        """A place at one that was not tried yet; BackendUnavailable if there is none."""
        place = await self._pool.take(self._model_id, self._weights, self._tried)
        self._tried.append(place.backend.backend_id)
        return place


def _unavailable(model_id: str, choice: Take | Wait | AllOut, *, was_tried: bool) -> BackendUnavailable:
    """Why a request gets no place."""
    if isinstance(choice, AllOut):
        problem = "it failed again and again and is left out for a while"
        return BackendUnavailable(model_id=model_id, problem=problem, retry_seconds=round(choice.return_seconds, 3))
    if was_tried:
        return BackendUnavailable(model_id=model_id, problem="every one of its backends was tried")
    problem = "it has as many requests as it may, and room did not come free in time"
    return BackendUnavailable(model_id=model_id, problem=problem)


def _leave_queues(waiter: _Waiter) -> None:
    for member in waiter.members:
        member.queue.pop(waiter, None)

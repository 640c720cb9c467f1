"""The backends, what each is doing now, and who waits for it: the one place where that is known.

Where a request goes is decided in ``core.choosing``, who is left out in ``core.standing``; here it is done. A place
at a backend is handed on at the instant it becomes free, to the request that has waited longest.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from metergate.core.choosing import AllOut, Candidate, Take, Wait, choose, has_room, is_last
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


@dataclass(slots=True)
class _Record:
    """How a backend has served one model of late."""

    standing: Standing
    trials: int = 0  # requests that it works on, sent since it was last ejected


class Member:
    """One backend in the pool: the models that it runs share its places and its line.

    It is left out for each model by itself: what one lacks there, or fails at, is no matter of the others.
    """

    def __init__(self, backend: Backend, limits: PoolLimits) -> None:
        self.backend = backend
        self.limits = limits
        self.is_up = True  # until a look finds something else: a gateway that starts must not refuse
        self.outstanding = 0
        self.queue: dict[_Waiter, None] = {}  # in order of arrival
        self.records: dict[str, _Record] = {}  # by model id, of those that were asked for

    def record(self, model_id: str) -> _Record:
        """How it has served a model."""
        record = self.records.get(model_id)
        if record is None:
            record = self.records[model_id] = _Record(Standing())
        return record

    def candidate(self, model_id: str, weight: int) -> Candidate:
        """What a choice is made from."""
        record = self.record(model_id)
        return Candidate(
            backend_id=self.backend.backend_id,
            weight=weight,
            outstanding=self.outstanding,
            requests_max=self.limits.requests_max,
            trials=record.trials,
            standing=record.standing,
            is_up=self.is_up,
        )

    def ejected(self, now_seconds: float) -> Mapping[str, bool]:
        """Whether it is left out, for each model that was asked for."""
        return {
            model_id: at(record.standing, now_seconds).state is State.EJECTED
            for model_id, record in self.records.items()
        }

    def health(self, now_seconds: float) -> Health:
        """What is known of it now: by the model that it serves best."""
        states = {at(record.standing, now_seconds).state for record in self.records.values()} or {State.TAKING}
        if states == {State.EJECTED}:
            return Health.EJECTED
        if not self.is_up:
            return Health.DOWN
        return Health.UP if State.TAKING in states else Health.RETURNING


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request in the queues of all members that could take it."""

    model_id: str
    weights: Mapping[str, int]  # of all of the model's backends, by id
    untried: Set[str]  # ids of those that it may be given a place at
    members: list[Member]
    place: "asyncio.Future[Place | None]"  # None: look again, one of the members was ejected


class Place:
    """A request's place at a backend, to be left on every way out."""

    __slots__ = ("_episode", "_is_left", "_member", "_model_id", "_pool", "_record", "_weights")

    def __init__(self, pool: "Pool", member: Member, model_id: str, weights: Mapping[str, int]) -> None:
        """``weights`` are those of all of the model's backends, by id."""
        self._pool = pool
        self._member = member
        self._model_id = model_id
        self._weights = weights
        self._record = member.record(model_id)
        self._episode = self._record.standing.episode
        self._is_left = False
        member.outstanding += 1
        self._record.trials += 1

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
        """Say what became of the request there; also after the place was left."""
        if event is Event.FAILED and self._pool.is_last(self._member, self._model_id, self._weights):
            event = Event.FAILED_LAST
        self._pool.note(self._member, self._model_id, event, self._episode)

    def leave(self) -> None:
        """Make room for another; a second time it does nothing."""
        if self._is_left:
            return
        self._is_left = True
        self._member.outstanding -= 1
        if self._episode == self._record.standing.episode:
            self._record.trials -= 1
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
        choice = self._choose(model_id, untried or weights)
        if untried and isinstance(choice, Take):
            return Place(self, self.members[choice.backend_id], model_id, weights)
        if untried and isinstance(choice, Wait):
            began_seconds = self._monotonic()
            place = await self._wait(model_id, weights, untried, choice)
            self._observer.waited(model_id, self._monotonic() - began_seconds, has_place=place is not None)
            if place is not None:
                return place
            choice = self._choose(model_id, untried)
            if isinstance(choice, Take):
                return Place(self, self.members[choice.backend_id], model_id, weights)
        raise _unavailable(model_id, choice, was_tried=not untried)

    def _choose(self, model_id: str, weights: Mapping[str, int]) -> Take | Wait | AllOut:
        return choose(self._candidates(model_id, weights), now_seconds=self._monotonic(), chance=self._chance())

    def _candidates(self, model_id: str, weights: Mapping[str, int]) -> list[Candidate]:
        return [self.members[backend_id].candidate(model_id, weight) for backend_id, weight in weights.items()]

    async def _wait(
        self, model_id: str, weights: Mapping[str, int], untried: Mapping[str, int], choice: Take | Wait | AllOut
    ) -> Place | None:
        """Wait for a place; None if the queues are full, or it took too long, or all were ejected meanwhile."""
        seconds_max = max(self.members[backend_id].limits.queue_seconds_max for backend_id in untried)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while isinstance(choice, Wait):
                    members = [self.members[backend_id] for backend_id in choice.backend_ids]
                    queued_at = [member for member in members if len(member.queue) < member.limits.queue_max]
                    if not queued_at:
                        return None
                    place = await self._stand_in_line(model_id, weights, untried, queued_at)
                    if place is not None:
                        return place
                    choice = self._choose(model_id, untried)
                if isinstance(choice, Take):
                    return Place(self, self.members[choice.backend_id], model_id, weights)
        return None

    async def _stand_in_line(
        self, model_id: str, weights: Mapping[str, int], untried: Mapping[str, int], members: list[Member]
    ) -> Place | None:
        waiter = _Waiter(model_id, weights, untried.keys(), members, asyncio.get_running_loop().create_future())
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

    def is_last(self, member: Member, model_id: str, weights: Mapping[str, int]) -> bool:
        """Whether none of the model's other backends is left."""
        return is_last(member.backend.backend_id, self._candidates(model_id, weights), self._monotonic())

    def note(self, member: Member, model_id: str, event: Event, episode: int) -> None:
        """Judge anew how a member serves a model."""
        record, now_seconds = member.record(model_id), self._monotonic()
        before = record.standing
        record.standing = after(before, event, episode=episode, now_seconds=now_seconds, chance=self._chance())
        if record.standing.episode != before.episode:
            record.trials = 0
            self._ejected(member, model_id, record.standing.until_seconds - now_seconds)
        elif record.standing is not before:
            self.hand_out(member)

    def _ejected(self, member: Member, model_id: str, seconds: float) -> None:
        backend_id = member.backend.backend_id
        logger.warning(
            "backend %s failed again and again at model %s: left out for %.1f s", backend_id, model_id, seconds
        )
        self._observer.ejected(backend_id, model_id)
        for waiter in [waiter for waiter in member.queue if waiter.model_id == model_id]:
            _leave_queues(waiter)
            if not waiter.place.done():
                waiter.place.set_result(None)
        asyncio.get_running_loop().call_later(seconds, self._returned, member)

    def _returned(self, member: Member) -> None:
        """Whoever waits at others and may come here does: they may be full for longer than anybody waits."""
        for other in self.members.values():
            for waiter in tuple(other.queue):
                is_let_in = member.backend.backend_id in waiter.untried and member not in waiter.members
                if is_let_in and len(member.queue) < member.limits.queue_max:
                    member.queue[waiter] = None
                    waiter.members.append(member)
        self.hand_out(member)

    def hand_out(self, member: Member) -> None:
        """Give what room there is to those who wait."""
        for waiter in tuple(member.queue) if member.queue else ():
            if member.outstanding >= member.limits.requests_max:
                return
            if has_room(member.candidate(waiter.model_id, 1), self._monotonic()):
                _leave_queues(waiter)
                if not waiter.place.done():
                    waiter.place.set_result(Place(self, member, waiter.model_id, waiter.weights))

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
            for model_id, record in tuple(member.records.items()):
                self.note(member, model_id, Event.RESTARTED, record.standing.episode)
            self._returned(member)


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

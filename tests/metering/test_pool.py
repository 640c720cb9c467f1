"""The pool: places, queues and what becomes of them on every way out."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from metering_world import ScriptedBackend, pool_of

from metergate.core import standing
from metergate.core.errors import BackendUnavailable
from metergate.core.standing import FAILURES_MAX, Event
from metergate.metering.pool import Candidates, Health, Place, Pool, PoolLimits

SOON_SECONDS = 5.0


@dataclass
class Watching:
    """A pool's observer that keeps what it saw."""

    waits: list[tuple[str, bool]] = field(default_factory=list)
    ejections: list[str] = field(default_factory=list)

    def waited(self, model_id: str, seconds: float, *, has_place: bool) -> None:
        assert seconds >= 0
        self.waits.append((model_id, has_place))

    def ejected(self, backend_id: str, model_id: str) -> None:
        self.ejections.append(backend_id)


def pool(
    *backend_ids: str, requests: int = 1, queue: int = 8, seconds: float = SOON_SECONDS, seen: Watching | None = None
) -> Pool:
    limits = PoolLimits(requests_max=requests, queue_max=queue, queue_seconds_max=seconds)
    backends = [ScriptedBackend([], backend_id) for backend_id in backend_ids]
    return pool_of(backends, limits=limits, chance=lambda: 0.0, observer=seen)


def candidates(pool: Pool, *backend_ids: str) -> Candidates:
    return Candidates(pool, "model-1", dict.fromkeys(backend_ids or pool.members, 1))


async def take(pool: Pool, *backend_ids: str) -> Place:
    return await candidates(pool, *backend_ids).take()


def taking(pool: Pool, *backend_ids: str) -> "asyncio.Task[Place]":
    return asyncio.create_task(take(pool, *backend_ids))


async def queued(pool: Pool, backend_id: str, times: int) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while len(pool.members[backend_id].queue) != times:  # noqa: ASYNC110 - tasks of this loop fill it
            await asyncio.sleep(0)


def is_at_rest(pool: Pool) -> bool:
    return all(
        (member.outstanding, len(member.queue), sum(record.trials for record in member.records.values())) == (0, 0, 0)
        for member in pool.members.values()
    )


def eject(pool: Pool, backend_ids: Iterable[str], model_id: str = "model-1") -> None:
    for backend_id in backend_ids:
        member = pool.members[backend_id]
        for _ in range(FAILURES_MAX):
            pool.note(member, model_id, Event.FAILED, member.record(model_id).standing.episode)


async def test_places_go_to_the_least_loaded_and_a_full_backend_takes_no_more() -> None:
    full = pool("a", "b", requests=2, queue=0)
    places = [await take(full) for _ in range(4)]
    assert [place.backend.backend_id for place in places] == ["a", "b", "a", "b"]
    with pytest.raises(BackendUnavailable, match="as many requests as it may"):
        await take(full)
    for place in places:
        place.leave()
        place.leave()
    assert is_at_rest(full)


async def test_a_place_that_comes_free_goes_to_the_one_that_waited_longest() -> None:
    one = pool("a")
    first = await take(one)
    waiting = []
    for index in range(3):
        waiting.append(taking(one))
        await queued(one, "a", index + 1)
    for task in waiting:
        assert not any(later.done() for later in waiting[waiting.index(task) :])
        first.leave()
        first = await asyncio.wait_for(task, SOON_SECONDS)
    first.leave()
    assert is_at_rest(one)


async def test_nobody_jumps_a_queue() -> None:
    one = pool("a")
    first = await take(one)
    waiting = taking(one)
    await queued(one, "a", 1)
    first.leave()
    late = taking(one)
    second = await waiting
    assert not late.done()
    second.leave()
    (await late).leave()


async def test_who_waits_for_several_gets_the_first_that_comes_free_and_waits_for_none_any_more() -> None:
    two = pool("a", "b")
    a, b = await take(two), await take(two)
    waiting = taking(two)
    await queued(two, "b", 1)
    b.leave()
    place = await waiting
    assert place.backend.backend_id == "b"
    assert not two.members["a"].queue
    place.leave()
    a.leave()
    assert is_at_rest(two)


async def test_a_full_queue_refuses_at_once_and_a_long_wait_is_given_up() -> None:
    seen = Watching()
    short = pool("a", queue=1, seconds=0.05, seen=seen)
    place = await take(short)
    waiting = taking(short)
    await queued(short, "a", 1)
    with pytest.raises(BackendUnavailable):
        await take(short)
    assert not waiting.done()
    with pytest.raises(BackendUnavailable, match="room did not come free in time"):
        await waiting
    place.leave()
    assert is_at_rest(short)
    assert seen.waits == [("model-1", False), ("model-1", False)]


@pytest.mark.parametrize("frees_first", [False, True])
async def test_who_goes_away_while_it_waits_leaves_nothing_behind(frees_first: bool) -> None:
    """Also when it is given a place in the very instant in which it is cancelled."""
    one = pool("a")
    place = await take(one)
    gone, next_one = taking(one), taking(one)
    await queued(one, "a", 2)
    if frees_first:
        place.leave()
    gone.cancel()
    place.leave()
    with pytest.raises(asyncio.CancelledError):
        await gone
    (await asyncio.wait_for(next_one, SOON_SECONDS)).leave()
    assert is_at_rest(one)


async def test_a_request_takes_each_backend_once() -> None:
    two = pool("a", "b")
    offered = candidates(two)
    (await offered.take()).leave()
    (await offered.take()).leave()
    with pytest.raises(BackendUnavailable, match="every one of its backends was tried") as raised:
        await offered.take()
    assert raised.value.retry_seconds is None


async def test_when_all_are_out_the_soonest_return_is_told_and_nobody_waits() -> None:
    seen = Watching()
    two = pool("a", "b", seen=seen)
    eject(two, ["b", "a"])
    assert two.health() == {"a": Health.EJECTED, "b": Health.EJECTED}
    with pytest.raises(BackendUnavailable) as raised:
        await take(two)
    assert raised.value.retry_seconds is not None
    assert 0 < raised.value.retry_seconds <= 2.0
    assert seen.ejections == ["b", "a"]
    assert seen.waits == []


async def test_an_ejection_sends_those_who_wait_to_another_or_tells_them() -> None:
    two = pool("a", "b")
    a, b = await take(two), await take(two)
    both, only_a = taking(two), taking(two, "a")
    await queued(two, "a", 2)
    eject(two, ["a"])
    with pytest.raises(BackendUnavailable, match="left out"):
        await only_a
    b.leave()
    assert (await both).backend.backend_id == "b"
    a.leave()
    assert two.health()["a"] is Health.EJECTED


async def test_one_request_at_a_time_tries_a_backend_that_comes_back_and_a_first_token_opens_it() -> None:
    one = pool("a", requests=8)
    old = await take(one)
    eject(one, ["a"])
    one.note(one.members["a"], "model-1", Event.RESTARTED, 1)
    trial = await take(one)
    waiting = [taking(one) for _ in range(2)]
    await queued(one, "a", 2)
    # What runs from before says nothing of it now.
    old.note(Event.ANSWERED)
    old.leave()
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    trial.note(Event.BEGAN)
    places = [await asyncio.wait_for(task, SOON_SECONDS) for task in waiting]
    assert one.health() == {"a": Health.RETURNING}
    for place in (trial, *places):
        place.leave()
    assert is_at_rest(one)


async def test_a_trial_that_fails_ejects_again_and_tells_who_waited() -> None:
    one = pool("a", requests=8)
    eject(one, ["a"])
    one.note(one.members["a"], "model-1", Event.RESTARTED, 1)
    trial = await take(one)
    waiting = taking(one)
    await queued(one, "a", 1)
    trial.note(Event.TURNED_AWAY)
    trial.leave()
    with pytest.raises(BackendUnavailable) as raised:
        await waiting
    assert raised.value.retry_seconds is not None
    assert raised.value.retry_seconds > 2.0  # longer than the first time
    assert is_at_rest(one)


async def test_failures_leave_out_one_backend_after_the_other_but_never_the_last() -> None:
    """Answers that break off, whoever asked for them: one backend goes on serving."""
    seen = Watching()
    three = pool("a", "b", "c", requests=8, seen=seen)
    for _ in range(10 * FAILURES_MAX):
        place = await take(three)
        place.note(Event.BEGAN)
        place.note(Event.FAILED)
        place.leave()
    assert seen.ejections == ["a", "b"]
    assert three.health() == {"a": Health.EJECTED, "b": Health.EJECTED, "c": Health.UP}
    for _ in range(FAILURES_MAX):
        with await take(three) as place:
            place.note(Event.TURNED_AWAY)
    assert three.health()["c"] is Health.EJECTED
    assert is_at_rest(three)


async def test_a_failure_may_be_told_after_its_place_was_left() -> None:
    two = pool("a", "b", requests=8)
    places = [await take(two, "a", "b") for _ in range(2 * FAILURES_MAX)]
    for place in places:
        place.leave()
    for place in places:
        if place.backend.backend_id == "a":
            place.note(Event.FAILED)
    assert two.health() == {"a": Health.EJECTED, "b": Health.UP}
    assert is_at_rest(two)


class Switched(ScriptedBackend):
    """Up as the test says."""

    up = True

    async def is_up(self) -> bool:
        return self.up


async def test_a_look_that_finds_a_backend_down_spares_it_and_finding_it_up_again_tries_it() -> None:
    backends: Sequence[Switched] = [Switched([], "a"), Switched([], "b")]
    two = pool_of(backends, chance=lambda: 0.0)
    backends[0].up = False
    assert await two.look() == {"a": Health.DOWN, "b": Health.UP}
    assert [(await take(two)).backend.backend_id for _ in range(3)] == ["b", "b", "b"]
    eject(two, ["a"])
    backends[0].up = True
    assert (await two.look())["a"] is Health.RETURNING
    assert (await take(two)).backend.backend_id == "a"


async def test_who_waits_for_a_full_backend_goes_to_another_that_came_up_meanwhile() -> None:
    backends: Sequence[Switched] = [Switched([], "a"), Switched([], "b")]
    limits = PoolLimits(requests_max=1, queue_max=8, queue_seconds_max=600.0)
    two = pool_of(backends, limits=limits, chance=lambda: 0.0)
    backends[1].up = False
    await two.look()
    held = await take(two)
    first, second = taking(two), taking(two)
    await queued(two, "a", 2)
    backends[1].up = True
    await two.look()
    async with asyncio.timeout(SOON_SECONDS):
        place = await first
        assert place.backend.backend_id == "b"
        assert not second.done()
        held.leave()  # it stands in both lines, and takes what comes free first
        assert (await second).backend.backend_id == "a"
    second.result().leave()
    place.leave()
    assert is_at_rest(two)


async def test_who_waits_for_a_full_backend_tries_another_when_its_ejection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standing, "EJECTION_SECONDS", 0.05)
    two = pool("a", "b", seconds=600.0)
    eject(two, ["b"])
    held = await take(two)
    waiting = taking(two)
    async with asyncio.timeout(SOON_SECONDS):
        place = await waiting
    assert place.backend.backend_id == "b"
    place.leave()
    held.leave()
    assert is_at_rest(two)


async def test_a_backend_is_left_out_for_the_model_that_it_fails_at_and_serves_the_others() -> None:
    """One app's impossible requests, or a model that is missing there, are no matter of other models."""
    seen = Watching()
    one = pool("a", requests=8, seen=seen)
    eject(one, ["a"], "broken")
    with pytest.raises(BackendUnavailable, match="left out"):
        await Candidates(one, "broken", {"a": 1}).take()
    (await take(one)).leave()
    assert one.health() == {"a": Health.UP}
    assert one.members["a"].ejected(asyncio.get_running_loop().time()) == {"broken": True, "model-1": False}
    eject(one, ["a"])
    assert one.health() == {"a": Health.EJECTED}


async def test_who_waits_for_a_trial_of_one_model_does_not_hold_up_another_model() -> None:
    one = pool("a", requests=2)
    eject(one, ["a"], "broken")
    one.note(one.members["a"], "broken", Event.RESTARTED, 1)
    trial = await Candidates(one, "broken", {"a": 1}).take()
    running = await take(one)
    waiting_for_trial = asyncio.create_task(Candidates(one, "broken", {"a": 1}).take())
    await queued(one, "a", 1)
    waiting = taking(one)
    await queued(one, "a", 2)
    running.leave()
    (await asyncio.wait_for(waiting, SOON_SECONDS)).leave()
    assert not waiting_for_trial.done()
    trial.note(Event.BEGAN)
    (await asyncio.wait_for(waiting_for_trial, SOON_SECONDS)).leave()
    trial.leave()
    assert is_at_rest(one)

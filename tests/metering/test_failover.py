"""A request and the backends it is sent to: tried, recorded, left out, waited for."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from metering_world import STOP, KeepingBackend, RecordingSink, ScriptedBackend, World, content, request, usage

from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import BackendEvent, BackendRequest, Delta, InferenceRequest
from metergate.core.standing import FAILURES_MAX, Standing
from metergate.metering.pool import Health, PoolLimits


async def test_each_attempt_records_what_it_may_have_cost_the_operator() -> None:
    unreached = BackendUnavailable(model_id="model-1", problem="connection refused", was_reached=False)
    broken = BackendUnavailable(model_id="model-1", problem="HTTP 500")
    backends = [
        ScriptedBackend([unreached], "unreached"),
        ScriptedBackend([broken], "broken"),
        ScriptedBackend([*content("fine"), STOP], "sound"),
    ]
    world = await World(backends=backends).fund(10_000)
    await world.stream()
    [charge] = await world.charges()
    prompt_tokens = world.sink.admissions[0].prompt_tokens
    assert [(attempt.backend_id, attempt.prompt_tokens) for attempt in charge.attempts] == [
        ("unreached", 0),
        ("broken", prompt_tokens),
        ("sound", prompt_tokens),
    ]
    assert all(attempt.milliseconds >= 0 for attempt in charge.attempts)


async def test_an_attempt_that_a_cancel_ends_records_its_time_and_its_prompt() -> None:
    world = await World([*content("The str"), asyncio.Event()]).fund(10_000)
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.settled()
    [charge] = await world.charges()
    [attempt] = charge.attempts
    assert attempt.milliseconds >= 20
    assert attempt.prompt_tokens == world.sink.admissions[0].prompt_tokens


async def test_three_backends_are_tried_and_a_fourth_is_not() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="HTTP 500")
    backends = [ScriptedBackend([failure], f"broken-{index}") for index in range(4)]
    world = await World(backends=backends).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    assert [len(backend.requests) for backend in backends] == [1, 1, 1, 0]
    assert await world.available() == 10_000


async def test_nothing_is_tried_again_after_the_first_token() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="its answer broke off")
    first, second = ScriptedBackend([*content("The str"), failure], "first"), ScriptedBackend([STOP], "second")
    world = await World(backends=[first, second]).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    assert second.requests == []


async def test_a_request_that_waits_for_a_backend_and_goes_away_is_charged_nothing_and_leaves_the_queue() -> None:
    world = await World([*content("The str"), asyncio.Event()]).fund(10_000)
    [member] = world.pool.members.values()
    member.limits = PoolLimits(requests_max=1, queue_max=1, queue_seconds_max=30.0)
    running = asyncio.create_task(world.stream(request(request_id="runs")))
    await world.sink.delivered.wait()
    waiting = asyncio.create_task(world.stream(request(request_id="waits")))
    async with asyncio.timeout(5):
        while not member.queue:  # noqa: ASYNC110 - tasks of this loop fill it
            await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="as many requests as it may"):
        await world.stream(request(request_id="refused"))
    waiting.cancel()
    running.cancel()
    await asyncio.wait([waiting, running])
    await world.settled()
    assert [charge.request_id for charge in await world.charges()] == ["runs"]
    assert (member.outstanding, len(member.queue)) == (0, 0)
    assert len(world.backend.requests) == 1


@pytest.mark.parametrize(
    "failure",
    [
        BackendUnavailable(model_id="model-1", problem="connection refused", was_reached=False),
        BackendUnavailable(model_id="model-1", problem="HTTP 503", takes_none=True),
    ],
    ids=["not connected", "takes none"],
)
async def test_backends_that_take_nothing_are_left_out_and_the_app_is_told_for_how_long(
    failure: BackendUnavailable,
) -> None:
    world = await World([failure]).fund(10_000)
    told = []
    for index in range(FAILURES_MAX + 1):
        with pytest.raises(BackendUnavailable) as raised:
            await world.stream(request(request_id=f"request-{index}"))
        told.append(raised.value.retry_seconds)
    assert len(world.backend.requests) == FAILURES_MAX
    assert told[:FAILURES_MAX] == [None] * (FAILURES_MAX - 1) + [told[FAILURES_MAX - 1]]
    assert all(seconds is not None and 0 < seconds <= 2.0 for seconds in told[FAILURES_MAX - 1 :])
    assert await world.available() == 10_000


class PoisonedBackend(ScriptedBackend):
    """Fails at a poisoned prompt, as its protocol lets it, and serves the others."""

    def __init__(self, backend_id: str, *, breaks_after: Sequence[Delta] = ()) -> None:
        super().__init__([], backend_id)
        self._breaks_after = breaks_after

    def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        failure = BackendUnavailable(model_id="model-1", problem="HTTP 500")
        is_poisoned = "poison" in request.prompt.messages[0].text()
        self.script = [*self._breaks_after, failure] if is_poisoned else [*content("fine"), STOP]
        return super().generate(request)


async def stream(world: World, asked: InferenceRequest) -> str:
    """What a stream of its own delivered."""
    sink = RecordingSink(world.ledger)
    await world.metering.stream(world.caller, asked, sink, time_left_seconds=None)
    return sink.text()


@pytest.mark.parametrize("backends", [1, 2, 4])
@pytest.mark.parametrize("at_once", [1, 3 * FAILURES_MAX])
async def test_requests_that_every_backend_fails_at_are_held_against_none(backends: int, at_once: int) -> None:
    members = [PoisonedBackend(f"backend-{index}") for index in range(backends)]
    world = await World(backends=members).fund(1_000_000)
    for wave in range(4):
        names = [f"poison-{wave}-{index}" for index in range(at_once)]
        poisoned = [stream(world, request("poison", name)) for name in names]
        outcomes = await asyncio.gather(*poisoned, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailable}
        assert await stream(world, request(request_id=f"sound-{wave}")) == "fine"
    assert set(world.pool.health().values()) == {Health.UP}
    assert [attempt.problem for charge in await world.charges() for attempt in charge.attempts] == [""] * 4


async def test_requests_whose_answers_break_off_everywhere_leave_one_backend_that_serves_the_others() -> None:
    members = [PoisonedBackend(f"backend-{index}", breaks_after=content("half ")) for index in range(3)]
    world = await World(backends=members).fund(1_000_000)
    for index in range(10 * FAILURES_MAX):
        with pytest.raises(BackendUnavailable):
            await stream(world, request("poison", f"poison-{index}"))
        if index >= 3 * FAILURES_MAX:
            assert await stream(world, request(request_id=f"sound-{index}")) == "fine"
    assert sum(health.is_usable for health in world.pool.health().values()) >= 1


async def test_a_failure_counts_once_another_backend_has_served_the_request() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="HTTP 500")
    gate = asyncio.Event()
    bad, good = ScriptedBackend([failure], "bad"), ScriptedBackend([gate, *content("fine"), STOP], "good")
    world = await World(backends=[bad, good]).fund(1_000_000)
    standing = world.pool.members["bad"].record("model-1")
    serving = asyncio.create_task(stream(world, request(request_id="first")))
    await asyncio.wait_for(good.played.wait(), 5)
    assert standing.standing.failures == 0
    gate.set()
    assert await serving == "fine"
    assert standing.standing.failures == 1
    for index in range(FAILURES_MAX):
        assert await stream(world, request(request_id=f"more-{index}")) == "fine"
    assert world.pool.health() == {"bad": Health.EJECTED, "good": Health.UP}
    assert len(bad.requests) == FAILURES_MAX


async def test_what_another_backend_refuses_as_such_is_held_against_none() -> None:
    failing = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="HTTP 500")], "failing")
    refusing = ScriptedBackend([BackendRejected(model_id="model-1", problem="HTTP 400")], "refusing")
    world = await World(backends=[failing, refusing]).fund(1_000_000)
    for index in range(2 * FAILURES_MAX):
        with pytest.raises(BackendRejected):
            await stream(world, request(request_id=f"request-{index}"))
    assert set(world.pool.health().values()) == {Health.UP}


async def test_a_backend_that_refuses_requests_as_such_is_not_left_out() -> None:
    world = await World([BackendRejected(model_id="model-1", problem="HTTP 400")]).fund(10_000)
    for index in range(2 * FAILURES_MAX):
        with pytest.raises(BackendRejected):
            await world.stream(request(request_id=f"request-{index}"))
    assert world.pool.health() == {"backend-1": Health.UP}


async def test_a_backend_that_hangs_does_not_hold_up_the_requests_that_others_serve() -> None:
    """It gathers what it does not answer, up to its part, and then nothing more comes to it."""
    hanging = ScriptedBackend([asyncio.Event()], "hanging")
    sound = ScriptedBackend([*content("fine"), STOP], "sound")
    world = await World(backends=[hanging, sound]).fund(1_000_000)
    stuck = asyncio.create_task(world.stream(request(request_id="stuck")))
    await asyncio.wait_for(hanging.played.wait(), 5)
    for index in range(50):
        async with asyncio.timeout(5):
            await world.metering.complete(world.caller, request(request_id=f"r-{index}"), time_left_seconds=None)
    assert (len(hanging.requests), len(sound.requests)) == (1, 50)
    stuck.cancel()
    await asyncio.wait([stuck])


CROSSED = BackendUnavailable(model_id="model-1", problem="it closed the connection", connection_was_kept=True)


async def test_what_a_kept_connection_ended_instead_of_is_sent_once_more_and_charged_once() -> None:
    """To the same backend, on the same reservation; both attempts are recorded."""
    backend = KeepingBackend([CROSSED], [*content("fine"), STOP])
    world = await World(backends=[backend]).fund(10_000)
    await world.stream()
    assert world.sink.text() == "fine"
    assert [asked.is_repeat for asked in backend.requests] == [False, True]
    [charge] = await world.charges()
    prompt_tokens = world.sink.admissions[0].prompt_tokens
    # What closed the connection has not read the first.
    assert [(attempt.backend_id, attempt.problem, attempt.prompt_tokens) for attempt in charge.attempts] == [
        ("backend-1", CROSSED.problem, 0),
        ("backend-1", "", prompt_tokens),
    ]
    assert charge.usage_counted == usage(prompt_tokens, "fine")
    assert await world.available() == 10_000 - charge.charged_microcredits


async def test_a_repeat_that_fails_goes_on_to_another_backend_like_any_failure() -> None:
    broken = BackendUnavailable(model_id="model-1", problem="HTTP 500")
    first, second = KeepingBackend([CROSSED], [broken], "first"), ScriptedBackend([*content("fine"), STOP], "second")
    world = await World(backends=[first, second]).fund(10_000)
    await world.stream()
    assert (len(first.requests), len(second.requests)) == (2, 1)
    [charge] = await world.charges()
    assert [attempt.problem for attempt in charge.attempts] == [CROSSED.problem, "HTTP 500", ""]


async def test_it_is_sent_once_more_and_not_twice() -> None:
    backend = KeepingBackend([CROSSED], [CROSSED])
    world = await World(backends=[backend]).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    assert [asked.is_repeat for asked in backend.requests] == [False, True]
    assert await world.available() == 10_000


async def test_a_backend_that_closes_kept_connections_is_not_left_out() -> None:
    backend = KeepingBackend([CROSSED], [*content("fine"), STOP])
    world = await World(backends=[backend]).fund(100_000)
    for index in range(3 * FAILURES_MAX):
        await world.metering.complete(world.caller, request(request_id=f"r-{index}"), time_left_seconds=None)
    assert world.pool.health() == {"backend-1": Health.UP}
    [record] = [member.record("model-1") for member in world.pool.members.values()]
    assert record.standing == Standing()

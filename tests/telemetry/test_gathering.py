"""Observers are told a moment later: of everything, in order, with the times at which it happened."""

import asyncio
import logging
from collections.abc import Callable, Mapping

import pytest
from metering_world import STOP, World, content

from metergate.core.rows import Authorization, Channel
from metergate.ports import CallStart, Commit, Delivery
from metergate.telemetry.gathering import EVENTS_MAX, EventClock, Gathering
from metergate.telemetry.logs import RequestLog

CALLER = Authorization(
    authorization_id="authorization-1",
    subscriber_id="subscriber-1",
    app_id="app-1",
    channel=Channel.APP,
    cap_microcredits=None,
    allowed_models=(),
    charged_microcredits=0,
    reserved_microcredits=0,
    create_time_us=0,
    revoke_time_us=None,
)
START = CallStart(verb="Complete", caller=CALLER, model_id="model-1", request_id="r", trace_context={})
DELIVERY = Delivery(characters=1, is_first=True, backend_seconds=0.0, gateway_seconds=0.0, capture_seconds=0.0)
COMMIT = Commit(operations=1, seconds=0.0, queued=0, expired_microcredits=0, has_failed=False)


class Recording:
    """An observer, of calls too, that keeps what it was told and when that happened."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.told: list[tuple[float, str]] = []
        self.was_told = asyncio.Event()
        self._seconds = seconds

    def _keep(self, what: str) -> None:
        self.told.append((self._seconds(), what))
        self.was_told.set()

    def call_began(self, start: CallStart) -> "Recording":
        self._keep("call_began")
        return self

    def committed(self, commit: Commit) -> None:
        self._keep("committed")

    def admitted(self, reservation: object, prompt_tokens: int) -> None:
        self._keep("admitted")

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        self._keep(f"dispatched to {backend_id}")
        return {}

    def failed_over(self, backend_id: str, problem: str) -> None:
        self._keep("failed_over")

    def crossed(self, backend_id: str) -> None:
        self._keep("crossed")

    def delivered(self, delivery: Delivery) -> None:
        self._keep("delivered")

    def vetted(self, verdict: object, seconds: float) -> None:
        self._keep("vetted")

    def settled(self, operation: object, settled: object) -> None:
        self._keep("settled")

    def ended(self, error: BaseException | None) -> None:
        self._keep("ended")


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def gathering(watch: Watch) -> tuple[Gathering, Recording]:
    clock = EventClock(watch)
    recording = Recording(clock.seconds)
    return Gathering(recording, clock), recording


async def test_events_of_many_calls_are_told_in_order_with_their_times() -> None:
    watch = Watch()
    gathered, recording = gathering(watch)
    one = gathered.call_began(START)
    watch.seconds = 1.0
    other = gathered.call_began(START)
    other.dispatched("here")
    watch.seconds = 2.0
    one.delivered(DELIVERY)
    one.ended(None)
    assert recording.told == []
    watch.seconds = 9.0
    gathered.tell()
    assert recording.told == [
        (0.0, "call_began"),
        (1.0, "call_began"),
        (1.0, "dispatched to here"),
        (2.0, "delivered"),
        (2.0, "ended"),
    ]


async def test_they_are_told_by_themselves() -> None:
    gathered, recording = gathering(Watch())
    for _ in range(2):  # the timer is set anew
        gathered.call_began(START)
        async with asyncio.timeout(5):
            await recording.was_told.wait()
        recording.was_told.clear()
    assert len(recording.told) == 2


async def test_no_more_than_so_many_are_kept() -> None:
    gathered, recording = gathering(Watch())
    call = gathered.call_began(START)
    for _ in range(EVENTS_MAX - 1):
        assert recording.told == []
        call.delivered(DELIVERY)
    assert len(recording.told) == EVENTS_MAX


async def test_a_commit_is_told_at_once() -> None:
    gathered, recording = gathering(Watch())
    gathered.committed(COMMIT)
    assert recording.told == [(0.0, "committed")]


async def test_a_log_line_has_the_time_of_its_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch()
    clock = EventClock(watch)
    gathered = Gathering(RequestLog(clock.seconds, clock.late_seconds), clock)
    world = await World([*content("one"), STOP], observers=[gathered]).fund(10_000)
    await world.stream()
    await world.settled()
    watch.seconds = 3600.0
    gathered.tell()
    now = logging.makeLogRecord({}).created
    [record] = [record for record in caplog.records if record.getMessage() == "request ended"]
    assert now - record.created == pytest.approx(3600.0, abs=60.0)
    assert vars(record)["seconds"] == 0.0

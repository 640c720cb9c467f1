"""What observers are told of a call, whatever ends it."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from metering_world import STOP, KeepingBackend, ScriptedBackend, World, content, request

from metergate.core.errors import BackendUnavailable, MetergateError
from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.reservation import Reservation
from metergate.ports import CallObserver, CallStart, Commit, Delivery


class Recorder:
    """Remembers which methods were called."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def call_began(self, start: CallStart) -> CallObserver:
        self.told.append(f"began {start.verb}")
        return self

    def committed(self, commit: Commit) -> None:
        self.told.append("committed")

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        self.told.append("admitted")

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        self.told.append(f"dispatched {backend_id}")
        return {}

    def failed_over(self, backend_id: str, problem: str) -> None:
        self.told.append(f"failed {backend_id}")

    def crossed(self, backend_id: str) -> None:
        self.told.append(f"crossed {backend_id}")

    def delivered(self, delivery: Delivery) -> None:
        self.told.append("delivered")

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        self.told.append(f"vetted {verdict}")

    def settled(self, operation: Settle, settled: Settled) -> None:
        self.told.append(f"settled {operation.close_cause}")

    def ended(self, error: BaseException | None) -> None:
        self.told.append(f"ended {type(error).__name__}")


async def test_a_call_that_fails_over_is_seen_step_by_step() -> None:
    recorder = Recorder()
    failing = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="it is away")], "away")
    serving = ScriptedBackend([*content("one", " two"), STOP], "here")
    world = await World(backends=[failing, serving], observers=[recorder]).fund(10_000)
    await world.stream()
    steps = [step for step in recorder.told if step != "delivered"]
    assert steps == [
        "began StreamComplete",
        "admitted",
        "dispatched away",
        "failed away",
        "dispatched here",
        "settled FINISHED",
        "ended NoneType",
    ]
    assert "delivered" in recorder.told


async def test_a_request_that_crossed_a_closing_connection_is_seen_to_be_asked_once_more() -> None:
    recorder = Recorder()
    crossed = BackendUnavailable(model_id="model-1", problem="it closed the connection", connection_was_kept=True)
    backend = KeepingBackend([crossed], [*content("one"), STOP], "here")
    world = await World(backends=[backend], observers=[recorder]).fund(10_000)
    await world.stream()
    assert [step for step in recorder.told if "here" in step] == ["dispatched here", "crossed here", "dispatched here"]


async def test_a_call_cancelled_at_any_await_ends_once_and_after_it_was_settled() -> None:
    step, was_cancelled = 0, True
    while was_cancelled:
        step += 1
        recorder = Recorder()
        world = await World([*content("one", " two", " three"), STOP], observers=[recorder]).fund(10_000)
        call = asyncio.create_task(world.stream(request()))
        for _ in range(step):
            await asyncio.sleep(0)
        was_cancelled = call.cancel()
        with suppress(asyncio.CancelledError, MetergateError):
            await call
        await world.settled()
        if recorder.told:
            assert [what for what in recorder.told if what.startswith("ended")] == recorder.told[-1:], recorder.told
            assert any(what.startswith("settled") for what in recorder.told) == ("admitted" in recorder.told)
    assert step > 10

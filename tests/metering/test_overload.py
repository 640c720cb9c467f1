"""More requests than the gateway takes are refused at once, typed, and nobody else notices."""

import asyncio

import pytest
from metering_world import STOP, RecordingSink, ScriptedBackend, World, content, request

from metergate.core.errors import Overloaded
from metergate.metering.limits import Limits


async def test_more_requests_than_the_limit_are_refused_before_any_work_and_let_in_when_there_is_room() -> None:
    release = asyncio.Event()
    backend = ScriptedBackend([*content("one "), release, *content("two"), STOP])
    world = await World(backends=[backend], limits=Limits(slice_tokens=4, requests_max=2)).fund(100_000)
    sinks = [RecordingSink(world.ledger) for _ in range(2)]
    streams = [
        asyncio.create_task(
            world.metering.stream(world.caller, request(request_id=f"r{index}"), sink, time_left_seconds=None)
        )
        for index, sink in enumerate(sinks)
    ]
    for sink in sinks:
        await sink.delivered.wait()
    operations = len(world.ledger.log)
    with pytest.raises(Overloaded) as refused:
        await world.stream(request(request_id="refused"))
    with pytest.raises(Overloaded):
        await world.metering.count_tokens(world.caller, "model-1", request().prompt, None)
    assert "2 requests at once" in str(refused.value)
    assert len(world.ledger.log) == operations
    assert len(backend.requests) == 2
    release.set()
    await asyncio.gather(*streams)
    assert [sink.text() for sink in sinks] == ["one two", "one two"]
    await world.stream(request(request_id="refused"))
    assert world.sink.text() == "one two"


async def test_a_refused_request_leaves_nothing_to_wait_for() -> None:
    world = await World(limits=Limits(requests_max=0)).fund(100_000)
    with pytest.raises(Overloaded):
        await world.stream()
    await world.metering.drain(1.0)
    assert await world.available() == 100_000

"""A request that was charged is answered with its record, also when it would be refused by now (L4)."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from metering_world import CARD, CONTEXT_TOKENS, STOP, RecordingSink, World, content, request

from metergate.core.errors import (
    MetergateError,
    ModelNotAllowed,
    ModelNotFound,
    ModelTaskWrong,
    PriceUnavailable,
    PromptTooLong,
    RequestIdConflict,
    RequestInProgress,
    RequestInvalid,
    StoreUnavailable,
)
from metergate.core.inference import Sampling
from metergate.core.parameters import ALL_PARAMETERS, Parameter

ASKED = request("what is it", sampling=Sampling(temperature=0.5))

ENDED = replace(CARD, expire_time_us=1)

# What a reload may change, and what a new request is refused with then.
RELOADS: list[tuple[dict[str, Any], type[MetergateError]]] = [
    ({"model_id": "another"}, ModelNotFound),
    ({"rate_cards": (ENDED,)}, PriceUnavailable),
    ({"parameters": ALL_PARAMETERS - {Parameter.TEMPERATURE}}, RequestInvalid),
    ({"context_tokens": 3}, PromptTooLong),
    ({"context_tokens": CONTEXT_TOKENS, "task": "EMBEDDING"}, ModelTaskWrong),
]


async def charged(**changes: Any) -> World:
    world = await World([*content("The road"), STOP], **changes).fund(10_000)
    await world.stream(ASKED)
    return world


@pytest.mark.parametrize(("change", "error"), RELOADS)
async def test_after_a_reload_a_charged_request_is_replayed_and_a_new_one_is_refused(
    change: dict[str, Any], error: type[MetergateError]
) -> None:
    world = await charged()
    first = world.sink
    world.reload(**change)
    world.sink = RecordingSink(world.ledger)
    await world.stream(ASKED)
    assert world.sink.receipts == [replace(first.receipts[0], replayed=True)]
    assert world.sink.text() == first.text() == "The road"
    completion = await world.metering.complete(world.caller, ASKED, time_left_seconds=None)
    assert completion.receipt == world.sink.receipts[0]
    assert completion.message is not None
    assert completion.message.text() == "The road"
    with pytest.raises(error):
        await world.stream(replace(ASKED, request_id="request-2"))
    with pytest.raises(RequestIdConflict):
        await world.stream(replace(ASKED, sampling=Sampling(temperature=0.6)))
    assert len(await world.charges()) == 1


async def test_a_charged_request_is_replayed_though_its_consent_does_not_cover_the_model_any_more() -> None:
    world = await charged()
    world.caller = replace(world.caller, allowed_models=("another",))
    world.sink = RecordingSink(world.ledger)
    await world.stream(ASKED)
    assert world.sink.receipts[0].replayed
    with pytest.raises(ModelNotAllowed):
        await world.stream(replace(ASKED, request_id="request-2"))


async def test_another_consents_request_of_the_same_id_is_refused_and_tells_nothing() -> None:
    world = await charged()
    world.reload(model_id="another")
    world.caller = replace(world.caller, authorization_id="authorization-2")
    with pytest.raises(ModelNotFound):
        await world.stream(ASKED)


async def test_a_request_that_still_runs_is_in_progress_whatever_became_of_its_model() -> None:
    go_on = asyncio.Event()
    world = await World([*content("The road"), go_on, STOP]).fund(10_000)
    running = asyncio.create_task(world.stream(ASKED))
    await world.backend.played.wait()
    world.reload(model_id="another")
    with pytest.raises(RequestInProgress):
        await world.metering.complete(world.caller, ASKED, time_left_seconds=None)
    with pytest.raises(RequestIdConflict):
        await world.metering.complete(world.caller, request("other"), time_left_seconds=None)
    go_on.set()
    await running
    assert not world.sink.receipts[0].replayed


async def test_whether_a_refused_request_was_charged_is_not_guessed_while_the_store_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await charged()
    world.reload(model_id="another")

    async def fail(*key: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(world.ledger, "find_request", fail)
    with pytest.raises(StoreUnavailable):
        await world.stream(ASKED)


async def test_a_request_that_is_served_reads_nothing_but_its_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World([STOP]).fund(10_000)
    monkeypatch.delattr(type(world.ledger), "find_request")
    await world.stream(ASKED)
    assert len(world.sink.receipts) == 1

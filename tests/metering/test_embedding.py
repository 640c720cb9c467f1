"""What an embedding debits, charges and returns, for every way it can end: as with every request (L6)."""

import asyncio
from array import array
from dataclasses import replace
from typing import Any

import pytest
from metering_world import CARD, KeepingBackend, ScriptedBackend, World, count_words, request

from metergate.core.catalog import ModelTask
from metergate.core.embedding import NUMBERS_MAX, EmbeddingRequest, Embeddings
from metergate.core.errors import (
    BackendRejected,
    BackendUnavailable,
    CapReached,
    DeadlineExceeded,
    InsufficientCredit,
    MetergateError,
    ModelNotFound,
    ModelTaskWrong,
    PromptTooLong,
    RequestIdConflict,
    RequestInProgress,
    RequestInvalid,
    ShuttingDown,
)
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Embedded
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from metergate.metering.limits import Limits
from metergate.ports import Backend

INPUTS = ("the road", "is long and winding")
TOKENS = sum(2 + count_words(text) for text in INPUTS)
USAGE = Usage.of({TokenClass.PROMPT: TOKENS})
COST = rate_ceil(USAGE, CARD)
# Prices of a prompt only: an embedding model has no others.
PROMPT_CARD = replace(CARD, prices=CARD.prices[:2])
VECTORS = Embeddings(vectors=(array("f", [1.0, 0.5, -2.0]), array("f", [0.0, 0.25, 4.0])), usage_reported=USAGE)
FAILURE = BackendUnavailable(model_id="model-1", problem="it hung up")


def embedding_world(*script: Any, backends: list[Any] | None = None, **changes: Any) -> World:
    limits = changes.pop("limits", None)
    values: dict[str, Any] = {"task": ModelTask.EMBEDDING, "dimensions": 3, "rate_cards": (PROMPT_CARD,)}
    return World(script, backends=backends, limits=limits, **(values | changes))


def asked(*inputs: str, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(**({"request_id": "e-1", "model_id": "model-1", "inputs": inputs or INPUTS} | fields))


async def embed(
    world: World, request: EmbeddingRequest | None = None, *, time_left_seconds: float | None = None
) -> Embedded:
    return await world.metering.embed(world.caller, request or asked(), time_left_seconds=time_left_seconds)


async def test_the_vectors_are_returned_charged_at_the_tokens_of_all_inputs() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    embedded = await embed(world)
    assert embedded.embeddings is VECTORS
    receipt = embedded.receipt
    assert (receipt.usage_counted, receipt.usage_reported) == (USAGE, USAGE)
    assert receipt.charged_microcredits == COST
    assert (receipt.finish_reason, receipt.close_cause) == (FinishReason.STOP, CloseCause.FINISHED)
    [charge] = await world.charges()
    assert charge.captured_microcredits == COST
    assert not charge.usage_mismatch
    assert await world.available() == receipt.spendable_microcredits == 10_000 - COST
    [sent] = world.backend.embedding_requests
    assert (sent.inputs, sent.dimensions, sent.asks_dimensions) == (INPUTS, 3, False)


async def test_no_vector_is_returned_before_its_cost_is_captured_and_settled() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    world.ledger.fail_next(1, skip=1)  # the reserve is written, the settling is not
    with pytest.raises(MetergateError) as caught:
        await embed(world)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert not await world.charges()


async def test_the_prompt_is_captured_before_the_backend_is_called() -> None:
    wait = asyncio.Event()
    world = await embedding_world(wait, VECTORS).fund(10_000)
    call = asyncio.create_task(embed(world))
    await asyncio.wait_for(world.backend.played.wait(), 5)
    [reservation] = world.ledger.open_reservations()
    assert reservation.captured_microcredits == reservation.reserved_microcredits == COST
    wait.set()
    await call


async def test_the_same_question_gets_the_same_vectors_and_the_recorded_receipt() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    first, second = await embed(world), await embed(world)
    assert second.embeddings is VECTORS
    assert second.receipt == replace(first.receipt, replayed=True)
    assert len(world.backend.embedding_requests) == len(await world.charges()) == 1


async def test_vectors_that_were_charged_are_replayed_after_their_model_is_gone() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    first = await embed(world)
    world.reload(model_id="another")
    again = await embed(world)
    assert again == replace(first, receipt=replace(first.receipt, replayed=True))
    assert again.receipt.charged_microcredits == COST
    with pytest.raises(RequestIdConflict):
        await embed(world, asked("something else"))
    with pytest.raises(RequestIdConflict):
        await world.stream(request(request_id="e-1"))
    with pytest.raises(ModelNotFound):
        await embed(world, asked(request_id="e-2"))


async def test_a_replay_whose_vectors_are_no_longer_kept_has_its_receipt_only() -> None:
    world = await embedding_world(VECTORS, limits=Limits(replay_characters_max=6)).fund(10_000)  # 6 numbers and a place
    await embed(world)
    replay = await embed(world)
    assert replay.embeddings is None
    assert replay.receipt.replayed
    assert replay.receipt.charged_microcredits == COST


@pytest.mark.parametrize(
    "other", [asked("another"), asked(dimensions=3), asked(credit_limit_microcredits=9_999), asked(*INPUTS[::-1])]
)
async def test_an_id_with_other_content_is_refused(other: EmbeddingRequest) -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    await embed(world)
    with pytest.raises(RequestIdConflict):
        await embed(world, other)


async def test_an_id_that_runs_is_refused() -> None:
    wait = asyncio.Event()
    world = await embedding_world(wait, VECTORS).fund(10_000)
    call = asyncio.create_task(embed(world))
    await asyncio.wait_for(world.backend.played.wait(), 5)
    with pytest.raises(RequestInProgress):
        await embed(world)
    wait.set()
    await call


async def test_too_little_credit_is_refused_before_any_backend_is_called() -> None:
    world = await embedding_world(VECTORS).fund(COST - 1)
    with pytest.raises(InsufficientCredit) as caught:
        await embed(world)
    assert caught.value.required_microcredits == COST
    assert not world.backend.embedding_requests


async def test_exactly_enough_credit_is_enough() -> None:
    world = await embedding_world(VECTORS).fund(COST)
    assert (await embed(world)).receipt.spendable_microcredits == 0


async def test_a_credit_limit_below_the_cost_is_refused() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    with pytest.raises(CapReached):
        await embed(world, asked(credit_limit_microcredits=COST - 1))


async def test_the_next_backend_serves_when_the_first_fails() -> None:
    first, second = ScriptedBackend([FAILURE], "first"), ScriptedBackend([VECTORS], "second")
    world = await embedding_world(backends=[first, second]).fund(10_000)
    assert (await embed(world)).embeddings is VECTORS
    [charge] = await world.charges()
    assert [(attempt.backend_id, attempt.problem) for attempt in charge.attempts] == [
        ("first", "it hung up"),
        ("second", ""),
    ]


@pytest.mark.parametrize("error", [FAILURE, BackendRejected(model_id="model-1", problem="status 400")])
async def test_a_backend_that_fails_or_refuses_costs_nothing(error: MetergateError) -> None:
    world = await embedding_world(error).fund(10_000)
    with pytest.raises(type(error)):
        await embed(world)
    assert not await world.charges()
    assert await world.available() == 10_000


async def test_a_backend_that_makes_no_vectors_is_unavailable() -> None:
    class ChatOnly:
        backend_id = "chat-only"
        generate = is_up = close = ScriptedBackend([]).generate

    backend: Backend = ChatOnly()  # type: ignore[assignment]
    world = await embedding_world(backends=[backend]).fund(10_000)
    with pytest.raises(BackendUnavailable, match="makes no vectors"):
        await embed(world)
    assert await world.available() == 10_000


async def test_a_backend_that_hangs_is_given_up() -> None:
    world = await embedding_world(asyncio.Event(), limits=Limits(first_token_seconds_max=0.05)).fund(10_000)
    with pytest.raises(BackendUnavailable, match="waiting too long"):
        await embed(world)
    assert await world.available() == 10_000
    assert world.backend.open_generations == 0


async def test_an_app_that_goes_away_is_charged_the_inputs_and_the_backend_is_left() -> None:
    world = await embedding_world(asyncio.Event()).fund(10_000)
    call = asyncio.create_task(embed(world))
    await asyncio.wait_for(world.backend.played.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await world.settled()
    [charge] = await world.charges()
    assert (charge.close_cause, charge.charged_microcredits) == (CloseCause.CLIENT_CANCELLED, COST)
    assert world.backend.open_generations == 0


async def test_what_runs_too_long_is_ended_and_costs_nothing() -> None:
    world = await embedding_world(asyncio.Event(), limits=Limits(request_seconds_max=0.05)).fund(10_000)
    with pytest.raises(DeadlineExceeded):
        await embed(world)
    assert not await world.charges()


async def test_draining_ends_it_and_costs_nothing() -> None:
    world = await embedding_world(asyncio.Event()).fund(10_000)
    call = asyncio.create_task(embed(world))
    await asyncio.wait_for(world.backend.played.wait(), 5)
    await world.metering.drain(0)
    with pytest.raises(ShuttingDown):
        await call
    assert not await world.charges()
    assert await world.available() == 10_000


async def test_a_defect_of_an_adapter_leaves_by_the_same_way_out() -> None:
    world = await embedding_world(RuntimeError("secret")).fund(10_000)
    with pytest.raises(RuntimeError):
        await embed(world)
    assert await world.available() == 10_000


async def test_an_input_longer_than_the_models_context_is_named() -> None:
    world = await embedding_world(VECTORS, context_tokens=5).fund(10_000)
    with pytest.raises(PromptTooLong) as caught:
        await embed(world, asked("short", "x" * 12))
    assert (caught.value.field, caught.value.prompt_tokens, caught.value.prompt_tokens_max) == ("inputs[1]", 6, 5)
    await embed(world, asked("short", "x" * 9))  # as many tokens as the context has


async def test_inputs_together_may_be_longer_than_the_context() -> None:
    world = await embedding_world(VECTORS, context_tokens=TOKENS - 1).fund(10_000)
    assert (await embed(world)).receipt.usage_counted == USAGE


async def test_long_inputs_are_counted_off_the_loop_and_alike() -> None:
    world = await embedding_world(VECTORS, limits=Limits(counted_in_loop_characters_max=1)).fund(10_000)
    assert (await embed(world)).receipt.usage_counted == USAGE


@pytest.mark.parametrize(("dimensions", "is_selectable"), [(2, False), (4, False), (4, True)])
async def test_dimensions_that_the_model_does_not_give_are_refused(dimensions: int, is_selectable: bool) -> None:
    world = await embedding_world(VECTORS, dimensions_selectable=is_selectable).fund(10_000)
    with pytest.raises(RequestInvalid, match="dimensions: must be"):
        await embed(world, asked(dimensions=dimensions))
    assert not world.backend.embedding_requests


@pytest.mark.parametrize(("dimensions", "is_selectable"), [(3, False), (2, True)])
async def test_dimensions_that_it_gives_are_asked_for(dimensions: int, is_selectable: bool) -> None:
    world = await embedding_world(VECTORS, dimensions_selectable=is_selectable).fund(10_000)
    await embed(world, asked(dimensions=dimensions))
    [sent] = world.backend.embedding_requests
    assert (sent.dimensions, sent.asks_dimensions) == (dimensions, True)


async def test_an_answer_that_no_client_would_take_is_refused_beforehand() -> None:
    world = await embedding_world(VECTORS, dimensions=NUMBERS_MAX // 2).fund(10_000)
    await embed(world, asked("a", "b", request_id="fits"))
    with pytest.raises(RequestInvalid, match="inputs: make"):
        await embed(world, asked("a", "b", "c"))


async def test_a_chat_with_an_embedding_model_and_the_reverse_are_refused_by_their_task() -> None:
    embedding, chat = await embedding_world(VECTORS).fund(10_000), await World(()).fund(10_000)
    with pytest.raises(ModelTaskWrong, match="EMBEDDING requests only"):
        await embedding.stream(request())
    with pytest.raises(ModelTaskWrong, match="EMBEDDING requests only"):
        await embedding.metering.count_tokens(embedding.caller, "model-1", request().prompt, None)
    with pytest.raises(ModelTaskWrong, match="CHAT requests only"):
        await embed(chat)
    with pytest.raises(ModelTaskWrong, match="CHAT requests only"):
        await chat.metering.count_inputs(chat.caller, "model-1", INPUTS)
    assert not embedding.ledger.log[3:]
    assert not chat.backend.embedding_requests


async def test_a_quote_of_inputs_is_what_embedding_them_then_costs() -> None:
    world = await embedding_world(VECTORS).fund(10_000)
    quote = await world.metering.count_inputs(world.caller, "model-1", INPUTS)
    assert (quote.prompt_tokens, quote.completion_tokens_max) == (TOKENS, 0)
    assert quote.prompt_microcredits == quote.cost_microcredits_max == COST
    assert not world.backend.embedding_requests
    assert await world.available() == 10_000
    assert (await embed(world)).receipt.charged_microcredits == COST


async def test_a_quote_of_an_input_that_is_too_long_names_it() -> None:
    world = await embedding_world(VECTORS, context_tokens=10).fund(10_000)
    with pytest.raises(PromptTooLong) as raised:
        await world.metering.count_inputs(world.caller, "model-1", ("fine", "word " * 20))
    assert raised.value.field == "inputs[1]"


async def test_a_report_of_cached_inputs_lowers_the_charge() -> None:
    reported = Usage.of({TokenClass.PROMPT: TOKENS - 4, TokenClass.CACHED_PROMPT: 4})
    world = await embedding_world(replace(VECTORS, usage_reported=reported)).fund(10_000)
    receipt = (await embed(world)).receipt
    assert receipt.usage_counted == reported
    assert receipt.charged_microcredits == rate_ceil(reported, PROMPT_CARD) < COST


async def test_a_report_that_differs_is_flagged_and_changes_no_price() -> None:
    reported = Usage.of({TokenClass.PROMPT: TOKENS + 7})
    world = await embedding_world(replace(VECTORS, usage_reported=reported)).fund(10_000)
    assert (await embed(world)).receipt.charged_microcredits == COST
    [charge] = await world.charges()
    assert charge.usage_mismatch


async def test_what_a_kept_connection_ended_instead_of_is_sent_once_more_and_charged_once() -> None:
    crossed = BackendUnavailable(model_id="model-1", problem="it closed the connection", connection_was_kept=True)
    backend = KeepingBackend([crossed], [VECTORS])
    world = await embedding_world(backends=[backend]).fund(10_000)
    embedded = await embed(world)
    assert embedded.receipt.charged_microcredits == COST
    assert [request.is_repeat for request in backend.embedding_requests] == [False, True]
    [charge] = await world.charges()
    assert [attempt.problem for attempt in charge.attempts] == [crossed.problem, ""]
    assert await world.available() == 10_000 - COST

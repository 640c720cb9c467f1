import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from edge_harness import APP_KEY, bearer, refused
from metering_world import ScriptItem, World, content

from metergate.core.catalog import ModelTask
from metergate.core.embedding import Embeddings
from metergate.core.errors import BackendRejected
from metergate.core.inference import Finish
from metergate.core.keys import hash_key
from metergate.core.parameters import ALL_PARAMETERS, Parameter
from metergate.core.reservation import CloseCause
from metergate.core.rows import ApiKey, FinishReason
from metergate.edges.auth import Authenticator
from metergate.edges.inference import InferenceServicer
from metergate.edges.server import ServerLimits, start_server
from metergate.v1 import chat_pb2, inference_pb2, inference_pb2_grpc

AUTHORIZED = bearer(APP_KEY)


@asynccontextmanager
async def gateway(
    *script: ScriptItem, amount_microcredits: int, **of_the_model: Any
) -> AsyncIterator[tuple[World, "inference_pb2_grpc.InferenceServiceAsyncStub"]]:
    world = await World(script, **of_the_model).fund(amount_microcredits)
    await world.ledger.add_key(
        ApiKey(
            key_id="key-1",
            secret_hash=hash_key(APP_KEY),
            authorization_id="authorization-1",
            create_time_us=0,
            revoke_time_us=None,
        )
    )
    handle = await start_server(
        address="127.0.0.1:0",
        servicers=[InferenceServicer(world.metering)],
        authenticator=Authenticator(world.ledger, asyncio.get_running_loop().time, world.clock),
        limits=ServerLimits(),
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{handle.port}") as channel:
        yield world, inference_pb2_grpc.InferenceServiceStub(channel)
    await handle.server.stop(None)


def asked(request_id: str = "request-1") -> inference_pb2.StreamCompleteRequest:
    message = chat_pb2.Message(
        role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="why is the sky blue")]
    )
    return inference_pb2.StreamCompleteRequest(
        inference=inference_pb2.Inference(request_id=request_id, model="models/model-1", messages=[message])
    )


async def test_an_answer_is_streamed_charged_and_replayed() -> None:
    script: tuple[ScriptItem, ...] = (*content("because ", "of ", "rayleigh"), Finish(reason=FinishReason.STOP))
    async with gateway(*script, amount_microcredits=1_000_000) as (world, stub):
        first = [event async for event in stub.StreamComplete(asked(), metadata=AUTHORIZED)]
        second = [event async for event in stub.StreamComplete(asked(), metadata=AUTHORIZED)]
        [charge] = await world.charges()
    for events in (first, second):
        assert events[0].HasField("admission")
        assert "".join(event.delta.content for event in events[1:-1]) == "because of rayleigh"
        assert events[-1].receipt.charge == f"subscribers/subscriber-1/charges/{charge.charge_id}"
        assert events[-1].receipt.charged_microcredits == charge.charged_microcredits > 0
    assert [first[-1].receipt.replayed, second[-1].receipt.replayed] == [False, True]


async def test_an_app_that_hangs_up_is_charged_what_it_was_delivered() -> None:
    script: tuple[ScriptItem, ...] = (*content("because ", "of "), asyncio.Event())
    async with gateway(*script, amount_microcredits=1_000_000) as (world, stub):
        call = stub.StreamComplete(asked(), metadata=AUTHORIZED)
        text = ""
        while text != "because of ":
            event = await call.read()
            assert isinstance(event, inference_pb2.StreamCompleteResponse)
            text += event.delta.content
        call.cancel()
        await world.metering.drain(10)
        [charge] = await world.charges()
        assert charge.close_cause is CloseCause.CLIENT_CANCELLED
        assert charge.charged_microcredits > 0
        assert world.backend.open_generations == 0


async def test_too_little_credit_is_refused_before_any_backend_is_called() -> None:
    async with gateway(*content("because"), amount_microcredits=1) as (world, stub):
        refusal = await refused(stub.StreamComplete(asked(), metadata=AUTHORIZED).read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_CREDIT")
    assert refusal.metadata["available_microcredits"] == "1"
    assert not world.backend.requests


# --- what a model is for, and takes ---------------------------------------------------------------------------------

VECTORS = Embeddings(vectors=(array("f", [1.0, 0.5]), array("f", [-2.0, 0.25])))
EMBEDDING = {"task": ModelTask.EMBEDDING, "dimensions": 2}


def texts(*inputs: str, request_id: str = "e-1", **fields: Any) -> inference_pb2.EmbedRequest:
    return inference_pb2.EmbedRequest(request_id=request_id, model="models/model-1", inputs=inputs, **fields)


async def test_vectors_are_returned_charged_and_replayed() -> None:
    async with gateway(VECTORS, amount_microcredits=1_000_000, **EMBEDDING) as (world, stub):
        first = await stub.Embed(texts("a road", "another"), metadata=AUTHORIZED)
        second = await stub.Embed(texts("a road", "another"), metadata=AUTHORIZED)
        [charge] = await world.charges()
    for response in (first, second):
        assert [list(embedding.values) for embedding in response.embeddings] == [[1.0, 0.5], [-2.0, 0.25]]
        assert response.receipt.charge == f"subscribers/subscriber-1/charges/{charge.charge_id}"
        assert response.receipt.charged_microcredits == charge.charged_microcredits > 0
    assert [first.receipt.replayed, second.receipt.replayed] == [False, True]


async def test_the_wrong_task_is_refused_by_the_model() -> None:
    async with gateway(VECTORS, amount_microcredits=1_000_000, **EMBEDDING) as (_, stub):
        chat = await refused(stub.StreamComplete(asked(), metadata=AUTHORIZED).read())
    async with gateway(*content("because"), amount_microcredits=1_000_000) as (_, stub):
        embedding = await refused(stub.Embed(texts("a"), metadata=AUTHORIZED))
    assert (chat.code, chat.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_TASK_WRONG")
    assert list(chat.violations) == ["inference.model"]
    assert chat.metadata == {"model_id": "model-1", "task": "EMBEDDING"}
    assert (embedding.code, embedding.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_TASK_WRONG")
    assert list(embedding.violations) == ["model"]


async def test_an_input_that_is_too_long_is_named() -> None:
    async with gateway(VECTORS, amount_microcredits=1_000_000, context_tokens=5, **EMBEDDING) as (_, stub):
        refusal = await refused(stub.Embed(texts("a", "x" * 99), metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert list(refusal.violations) == ["inputs[1]"]


async def test_a_prompt_that_is_too_long_and_a_backends_refusal_are_named_within_the_inference() -> None:
    async with gateway(*content("because"), amount_microcredits=1_000_000, context_tokens=5) as (_, stub):
        refusal = await refused(stub.StreamComplete(asked(), metadata=AUTHORIZED).read())
    assert list(refusal.violations) == ["inference.messages"]
    rejections = [BackendRejected(model_id="model-1", problem="HTTP 400") for _ in range(2)]
    async with gateway(rejections[0], amount_microcredits=1_000_000) as (_, stub):
        refusal = await refused(
            stub.Complete(inference_pb2.CompleteRequest(inference=asked().inference), metadata=AUTHORIZED)
        )
        assert list(refusal.violations) == ["inference"]
    async with gateway(rejections[1], amount_microcredits=1_000_000, **EMBEDDING) as (_, stub):
        assert list((await refused(stub.Embed(texts("a"), metadata=AUTHORIZED))).violations) == ["request"]


async def test_a_parameter_that_a_backend_does_not_take_is_refused_by_its_field_and_nothing_is_reserved() -> None:
    taken = ALL_PARAMETERS - {Parameter.SEED, Parameter.ASSISTANT_LAST}
    async with gateway(*content("because"), amount_microcredits=1_000_000, parameters=taken) as (world, stub):
        request = asked()
        request.inference.sampling.seed = 1
        request.inference.messages.add(role=chat_pb2.ROLE_ASSISTANT, content_parts=[chat_pb2.ContentPart(text="It")])
        refusal = await refused(stub.StreamComplete(request, metadata=AUTHORIZED).read())
        assert not world.backend.requests
        assert not world.ledger.open_reservations()
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.violations) == {"inference.sampling.seed", "inference.messages[1].role"}

import asyncio
import logging
from typing import Any, cast

import grpc
import pytest
from edge_harness import (
    ADMISSION,
    APP_KEY,
    CARD,
    MESSAGE_BYTES_MAX,
    RECEIPT,
    Edge,
    bearer,
    key_of,
    refusal_of,
    refused,
)

from metergate.core.errors import (
    BackendUnavailable,
    InsufficientCredit,
    LedgerInvariantBroken,
    RequestIdConflict,
    RequestInProgress,
    RequestInvalid,
    Violation,
)
from metergate.core.inference import Delta, ToolCallDelta
from metergate.ports import Sink
from metergate.v1 import chat_pb2, inference_pb2, usage_pb2

RawMethod = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

AUTHORIZED = bearer(APP_KEY)


def inference(text: str = "Hi", **fields: object) -> inference_pb2.Inference:
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text=text)])
    values: dict[str, object] = {"request_id": "q-1", "model": "models/small", "messages": [message], **fields}
    return inference_pb2.Inference(**values)  # type: ignore[arg-type]


def complete_request(text: str = "Hi", **fields: object) -> inference_pb2.CompleteRequest:
    return inference_pb2.CompleteRequest(inference=inference(text, **fields))


def stream_request() -> inference_pb2.StreamCompleteRequest:
    return inference_pb2.StreamCompleteRequest(inference=inference())


async def test_complete_returns_the_answer_and_its_receipt(edge: Edge) -> None:
    response = await edge.inference.Complete(complete_request(), metadata=AUTHORIZED)
    assert response.message.content_parts[0].text == "Hello"
    assert response.message.role == chat_pb2.ROLE_ASSISTANT
    assert response.reasoning_content == "hm"
    receipt = response.receipt
    assert receipt.charge == "subscribers/zhang/charges/c1"
    assert receipt.rate_card == "models/small/rateCards/card-1"
    assert [(count.token_class, count.tokens) for count in receipt.usage_counted.token_counts] == [(1, 7), (3, 3)]
    assert not receipt.HasField("usage_reported")
    assert (receipt.charged_microcredits, receipt.available_microcredits) == (20, 980)
    assert receipt.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert receipt.close_cause == inference_pb2.CLOSE_CAUSE_FINISHED
    assert edge.metering.callers[0].app_id == "workbuddy"


async def test_the_apps_deadline_reaches_the_use_case(edge: Edge) -> None:
    await edge.inference.Complete(complete_request(), metadata=AUTHORIZED)
    assert edge.metering.time_left_seconds is None
    await edge.inference.Complete(complete_request(), metadata=AUTHORIZED, timeout=30)
    assert edge.metering.time_left_seconds is not None
    assert 20 < edge.metering.time_left_seconds < 31  # gRPC rounds a timeout up on its way


async def test_a_stream_is_admission_deltas_receipt(edge: Edge) -> None:
    call = ToolCallDelta(index=0, tool_call_id="t1", name="f", arguments="{")

    async def script(sink: Sink) -> None:
        await sink.admit(ADMISSION)
        await sink.deliver(Delta(content="The sky"))
        await sink.deliver(Delta(reasoning_content="hm"))
        await sink.deliver(Delta(content=" is blue"))
        await sink.deliver(Delta(content="!", tool_calls=(call,)))
        await sink.deliver(Delta(content=" 天"))
        await sink.receipt(RECEIPT)

    edge.metering.script = script
    events = [event async for event in edge.inference.StreamComplete(stream_request(), metadata=AUTHORIZED)]
    assert [event.WhichOneof("event") for event in events] == ["admission", *["delta"] * 5, "receipt"]
    assert events[0].admission == inference_pb2.Admission(
        reservation="subscribers/zhang/reservations/r1", prompt_tokens=7, rate_card="models/small/rateCards/card-1"
    )
    assert [event.delta.content for event in events[1:-1]] == ["The sky", "", " is blue", "!", " 天"]
    assert [event.delta.reasoning_content for event in events[1:-1]] == ["", "hm", "", "", ""]
    assert events[4].delta.tool_calls[0] == chat_pb2.ToolCallDelta(index=0, tool_call_id="t1", name="f", arguments="{")
    assert events[-1].receipt.charged_microcredits == 20


async def test_a_stream_that_fails_sends_its_receipt_before_the_status(edge: Edge) -> None:
    async def script(sink: Sink) -> None:
        await sink.admit(ADMISSION)
        await sink.deliver(Delta(content="The sky"))
        await sink.receipt(RECEIPT)
        raise BackendUnavailable(model_id="small", problem="it hung up", charge="subscribers/zhang/charges/c1")

    edge.metering.script = script
    call = edge.inference.StreamComplete(stream_request(), metadata=AUTHORIZED)
    events = [cast(inference_pb2.StreamCompleteResponse, await call.read()) for _ in range(3)]
    assert [event.WhichOneof("event") for event in events] == ["admission", "delta", "receipt"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    refusal = refusal_of(caught.value)
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.reason == "BACKEND_UNAVAILABLE"
    assert refusal.metadata["charge"] == "subscribers/zhang/charges/c1"
    assert refusal.retry_seconds == 1


async def test_an_app_that_cancels_cancels_the_use_case(edge: Edge) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def script(sink: Sink) -> None:
        await sink.admit(ADMISSION)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise

    edge.metering.script = script
    call = edge.inference.StreamComplete(stream_request(), metadata=AUTHORIZED)
    await call.read()
    call.cancel()
    assert await asyncio.wait_for(ended, 10) == "cancelled"


async def test_an_app_that_hangs_up_ends_the_use_case_by_cancellation_also_in_a_write(edge: Edge) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def script(sink: Sink) -> None:
        try:
            await sink.admit(ADMISSION)
            while True:
                await sink.deliver(Delta(content="x" * 10_000))
        except BaseException as error:
            ended.set_result(type(error).__name__)
            raise

    edge.metering.script = script
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.handle.port}") as channel:
        stream: grpc.aio.UnaryStreamMultiCallable[Any, Any] = channel.unary_stream(
            "/metergate.v1.InferenceService/StreamComplete",
            request_serializer=inference_pb2.StreamCompleteRequest.SerializeToString,
        )
        call = stream(stream_request(), metadata=AUTHORIZED)
        await call.read()
    assert await asyncio.wait_for(ended, 10) == "CancelledError"


async def test_the_apps_deadline_ends_the_use_case_by_cancellation(edge: Edge) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def script(sink: Sink) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise

    edge.metering.script = script
    call = edge.inference.StreamComplete(stream_request(), metadata=AUTHORIZED, timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await asyncio.wait_for(ended, 10) == "cancelled"


async def test_counting_tokens_answers_with_the_quote(edge: Edge) -> None:
    request = inference_pb2.CountTokensRequest(
        model="models/small", messages=inference().messages, max_completion_tokens=9
    )
    response = await edge.inference.CountTokens(request, metadata=AUTHORIZED)
    assert response == inference_pb2.CountTokensResponse(
        prompt_tokens=7,
        completion_tokens_max=9,
        prompt_microcredits=14,
        cost_microcredits_max=214,
        rate_card=f"models/small/rateCards/{CARD.rate_card_id}",
        counting_source=usage_pb2.COUNTING_SOURCE_TOKENIZER,
    )


async def test_counting_inputs_answers_with_the_quote(edge: Edge) -> None:
    request = inference_pb2.CountTokensRequest(model="models/small", inputs=["one", "two"])
    response = await edge.inference.CountTokens(request, metadata=AUTHORIZED)
    assert edge.metering.inputs == ("one", "two")
    assert response == inference_pb2.CountTokensResponse(
        prompt_tokens=7,
        completion_tokens_max=0,
        prompt_microcredits=14,
        cost_microcredits_max=14,
        rate_card=f"models/small/rateCards/{CARD.rate_card_id}",
        counting_source=usage_pb2.COUNTING_SOURCE_TOKENIZER,
    )


@pytest.mark.parametrize(
    ("fields", "violated"),
    [
        ({"inputs": ["one"], "messages": inference().messages}, {"inputs"}),
        ({"inputs": ["one"], "tools": [chat_pb2.Tool(name="now")]}, {"inputs"}),
        ({"inputs": ["one"], "max_completion_tokens": 5}, {"inputs"}),
        ({"inputs": ["one", ""]}, {"inputs[1]"}),
        ({"inputs": ["one", "a\0b"]}, {"inputs[1]"}),
        ({"inputs": ["x"] * 2_049}, {"inputs"}),
        ({"inputs": ["one"], "model": "small"}, {"model"}),
        ({}, {"messages"}),
    ],
)
async def test_counting_what_no_embedding_would_take_is_refused_by_the_field(
    edge: Edge, fields: dict[str, Any], violated: set[str]
) -> None:
    request = inference_pb2.CountTokensRequest(**({"model": "models/small"} | fields))
    refusal = await refused(edge.inference.CountTokens(request, metadata=AUTHORIZED))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.violations) == violated
    assert not edge.metering.callers


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer nonsense"),), bearer(key_of(77))])
async def test_a_call_without_a_valid_key_is_unauthenticated(edge: Edge, metadata: tuple[tuple[str, str], ...]) -> None:
    refusal = await refused(edge.inference.Complete(complete_request(), metadata=metadata))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert not edge.metering.requests


async def test_a_stream_without_a_valid_key_is_unauthenticated(edge: Edge) -> None:
    refusal = await refused(edge.inference.StreamComplete(stream_request()).read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_a_revoked_key_is_permission_denied(edge: Edge) -> None:
    await edge.store.revoke_key("zhang-workbuddy", 5)
    refusal = await refused(edge.inference.Complete(complete_request(), metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "AUTHORIZATION_REVOKED")


async def test_bad_fields_are_told_as_field_violations(edge: Edge) -> None:
    request = complete_request(request_id="", max_completion_tokens=0)
    refusal = await refused(edge.inference.Complete(request, metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert set(refusal.violations) == {"inference.request_id", "inference.max_completion_tokens"}


async def test_as_many_bad_fields_as_there_can_be_still_arrive_as_violations(edge: Edge) -> None:
    request = complete_request()
    request.inference.messages.extend([chat_pb2.Message(role=99)] * 1000)  # type: ignore[arg-type]
    refusal = await refused(edge.inference.Complete(request, metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "inference.messages[1].role" in refusal.violations


async def test_a_message_over_the_size_limit_is_refused_with_the_limit(edge: Edge) -> None:
    refusal = await refused(edge.inference.Complete(complete_request("x" * MESSAGE_BYTES_MAX), metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
    assert refusal.metadata["bytes_max"] == str(MESSAGE_BYTES_MAX)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x03\x0a\x01\xff"])
async def test_bytes_that_are_no_request_are_an_invalid_argument(edge: Edge, data: bytes) -> None:
    method: RawMethod = edge.channel.unary_unary("/metergate.v1.InferenceService/Complete")
    refusal = await refused(method(data, metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "request" in refusal.violations


async def test_an_unknown_field_is_an_invalid_argument(edge: Edge) -> None:
    method: RawMethod = edge.channel.unary_unary("/metergate.v1.InferenceService/Complete")
    data = complete_request().SerializeToString() + b"\x4a\x01x"
    refusal = await refused(method(data, metadata=AUTHORIZED))
    assert refusal.violations == {"request": "has the unknown field 9"}


async def test_an_unknown_method_is_unimplemented(edge: Edge) -> None:
    method: RawMethod = edge.channel.unary_unary("/metergate.v1.InferenceService/Imagine")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"", metadata=AUTHORIZED)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("error", "code", "metadata"),
    [
        (
            InsufficientCredit(available_microcredits=1, required_microcredits=2),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"available_microcredits": "1", "required_microcredits": "2"},
        ),
        (RequestInProgress(request_id="问"), grpc.StatusCode.ABORTED, {"request_id": "问"}),
        (RequestIdConflict(request_id="q-1"), grpc.StatusCode.ALREADY_EXISTS, {"request_id": "q-1"}),
    ],
)
async def test_the_use_cases_errors_arrive_with_reason_and_values(
    edge: Edge, error: InsufficientCredit, code: grpc.StatusCode, metadata: dict[str, str]
) -> None:
    edge.metering.error = error
    refusal = await refused(edge.inference.Complete(complete_request(), metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason, refusal.metadata) == (code, error.reason, metadata)
    assert refusal.message == str(error)


async def test_a_defect_is_internal_and_logged_without_the_prompt(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.metering.error = ValueError("prompt: my password")
    with caplog.at_level(logging.ERROR):
        refusal = await refused(edge.inference.Complete(complete_request("my password"), metadata=AUTHORIZED))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.message == "The gateway failed."
    assert "metergate.v1.InferenceService.Complete failed: ValueError" in caplog.text
    assert "raise self.error" in vars(caplog.records[-1])["exception"]
    assert "password" not in caplog.text + str(vars(caplog.records[-1]))
    edge.metering.error = LedgerInvariantBroken(problem="a secret")
    refusal = await refused(edge.inference.Complete(complete_request(), metadata=AUTHORIZED))
    assert (refusal.reason, refusal.metadata) == ("INTERNAL", {})


async def test_a_prompt_that_cannot_be_counted_is_blamed_by_the_requests_own_field(edge: Edge) -> None:
    uncountable = RequestInvalid(Violation("messages", "cannot be counted"), Violation("tools[0]", "is no JSON"))

    async def script(sink: Sink) -> None:
        raise uncountable

    edge.metering.error, edge.metering.script = uncountable, script
    within = {"inference.messages": "cannot be counted", "inference.tools[0]": "is no JSON"}
    assert (await refused(edge.inference.Complete(complete_request(), metadata=AUTHORIZED))).violations == within
    stream = edge.inference.StreamComplete(stream_request(), metadata=AUTHORIZED)
    assert (await refused(stream.read())).violations == within
    count = inference_pb2.CountTokensRequest(model="models/small", messages=inference().messages)
    quoted = await refused(edge.inference.CountTokens(count, metadata=AUTHORIZED))
    assert quoted.violations == {"messages": "cannot be counted", "tools[0]": "is no JSON"}

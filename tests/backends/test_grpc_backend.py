"""The BackendService adapter against a servicer in the same process."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from backend_requests import a_request
from grpc import aio

from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import (
    BackendEvent,
    BackendRequest,
    Delta,
    Finish,
    Message,
    Prompt,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolCallDelta,
    UsageReport,
)
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import backend_pb2, backend_pb2_grpc, chat_pb2, usage_pb2

SECRET_PROMPT = "the-secret-prompt"
KEY = "sk-very-secret"
SOON_SECONDS = 5.0  # for what happens within milliseconds on a quiet machine

TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

Context = aio.ServicerContext[backend_pb2.GenerateRequest, backend_pb2.GenerateResponse]
Script = Callable[[Context], AsyncIterator[backend_pb2.GenerateResponse]]


@dataclass
class Servicer(backend_pb2_grpc.BackendServiceServicer):
    """Runs a script for every request and keeps what it saw."""

    script: Script
    requests: list[backend_pb2.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    is_reached: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(  # noqa: N802
        self, request: backend_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[backend_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.is_reached.set()
        try:
            async for response in self.script(context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):  # the latter if gRPC was cancelled while it wrote a response
            self.is_cancelled.set()
            raise

    async def Embed(  # noqa: N802
        self, request: backend_pb2.BackendServiceEmbedRequest, context: Context
    ) -> backend_pb2.BackendServiceEmbedResponse:
        raise NotImplementedError

    async def GetModelInfo(  # noqa: N802
        self, request: backend_pb2.GetModelInfoRequest, context: Context
    ) -> backend_pb2.GetModelInfoResponse:
        raise NotImplementedError


@asynccontextmanager
async def serving(script: Script, **options: Any) -> AsyncIterator[tuple[Servicer, GrpcBackend]]:
    """A servicer, and the adapter connected to it."""
    servicer = Servicer(script)
    server = aio.server()
    backend_pb2_grpc.add_BackendServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backend = backend_at(f"127.0.0.1:{port}", **options)
    try:
        yield servicer, backend
    finally:
        await backend.close()
        await server.stop(None)


def backend_at(address: str, **changes: Any) -> GrpcBackend:
    values: dict[str, Any] = {
        "backend_id": "b1",
        "address": address,
        "model_names": {"smol": "smollm2-135m"},
        "connect_timeout_seconds": 2.0,
    }
    return GrpcBackend(GrpcBackendOptions(**(values | changes)))


def playing(*responses: backend_pb2.GenerateResponse) -> Script:
    async def script(_: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
        for response in responses:
            yield response

    return script


async def hang_after_hello(_: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
    yield hello
    await asyncio.Event().wait()


async def hang(_: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
    await asyncio.Event().wait()
    yield hello


def request(**changes: Any) -> BackendRequest:
    return a_request(SECRET_PROMPT, **changes)


async def collect(backend: GrpcBackend, asked: BackendRequest | None = None) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [event async for event in backend.generate(asked or request())]


async def events_of(*responses: backend_pb2.GenerateResponse) -> list[BackendEvent]:
    async with serving(playing(*responses)) as (_, backend):
        return await collect(backend)


def usage(*counts: tuple[usage_pb2.TokenClass.ValueType, int]) -> usage_pb2.Usage:  # type: ignore[valid-type, unused-ignore]
    return usage_pb2.Usage(
        token_counts=[usage_pb2.TokenCount(token_class=token_class, tokens=tokens) for token_class, tokens in counts]
    )


Response = backend_pb2.GenerateResponse
hello = Response(delta=chat_pb2.Delta(content="Hello"))
stop = Response(finish_reason=chat_pb2.FINISH_REASON_STOP)
HELLO_EVENTS = [Delta(content="Hello"), Finish(reason=FinishReason.STOP)]


async def test_an_answer_is_deltas_a_finish_and_usage() -> None:
    call = chat_pb2.ToolCallDelta(index=1, tool_call_id="c1", name="f", arguments="{}")
    reported = usage(
        (usage_pb2.TOKEN_CLASS_PROMPT, 4),
        (usage_pb2.TOKEN_CLASS_CACHED_PROMPT, 3),
        (usage_pb2.TOKEN_CLASS_COMPLETION, 2),
        (usage_pb2.TOKEN_CLASS_REASONING, 1),
    )
    assert await events_of(
        Response(),
        Response(delta=chat_pb2.Delta(reasoning_content="Hm.", content="Hi"), token_ids=[1, 2]),
        Response(delta=chat_pb2.Delta(tool_calls=[call])),
        Response(finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS, usage=reported),
    ) == [
        Delta(reasoning_content="Hm.", content="Hi"),
        Delta(tool_calls=(ToolCallDelta(index=1, tool_call_id="c1", name="f", arguments="{}"),)),
        Finish(reason=FinishReason.TOOL_CALLS),
        UsageReport(
            usage=Usage.of(
                {
                    TokenClass.PROMPT: 4,
                    TokenClass.CACHED_PROMPT: 3,
                    TokenClass.COMPLETION: 2,
                    TokenClass.REASONING: 1,
                }
            )
        ),
    ]


async def test_no_usage_is_no_report_and_an_empty_one_is_a_report_of_zero() -> None:
    assert await events_of(hello, stop) == HELLO_EVENTS
    assert await events_of(hello, stop, Response(usage=usage())) == [*HELLO_EVENTS, UsageReport(usage=Usage())]


@pytest.mark.parametrize(
    "counts",
    [
        [(usage_pb2.TOKEN_CLASS_PROMPT, -1)],
        [(usage_pb2.TOKEN_CLASS_PROMPT, 2**40)],
        [(usage_pb2.TOKEN_CLASS_PROMPT, 1), (usage_pb2.TOKEN_CLASS_PROMPT, 1)],
        [(usage_pb2.TOKEN_CLASS_UNSPECIFIED, 1)],
        [(99, 1)],
    ],
    ids=["negative", "absurd", "twice", "unspecified", "unknown"],
)
async def test_usage_that_cannot_be_true_is_ignored_with_one_warning(
    counts: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    reported = Response(usage=usage(*counts))
    assert await events_of(hello, stop, reported, reported) == HELLO_EVENTS
    assert [record.levelno for record in caplog.records if record.name.startswith("metergate")] == [logging.WARNING]


async def test_an_unknown_finish_reason_is_stop_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert await events_of(hello, Response(finish_reason=99)) == HELLO_EVENTS  # type: ignore[arg-type]
    assert "finish reason 99" in caplog.text


@pytest.mark.parametrize(
    ("responses", "problem"),
    [
        ([], "its answer broke off before a finish reason"),
        ([hello], "its answer broke off before a finish reason"),
        ([hello, stop, hello], "its answer went on after the finish reason"),
        ([Response(finish_reason=chat_pb2.FINISH_REASON_INTERRUPTED)], "it did not get to the end of its answer"),
        ([Response(finish_reason=chat_pb2.FINISH_REASON_CREDIT_EXHAUSTED)], "it did not get to the end of its answer"),
        (
            [Response(delta=chat_pb2.Delta(tool_calls=[chat_pb2.ToolCallDelta(index=-1)]))],
            "it sent a piece of a tool call with an index outside 0 to 127",
        ),
        ([Response(delta=chat_pb2.Delta(content="x" * 1_100_000))], "gRPC status RESOURCE_EXHAUSTED"),
    ],
    ids=["nothing", "no finish", "more", "interrupted", "credit exhausted", "negative index", "enormous"],
)
async def test_an_answer_that_makes_no_sense_is_an_unavailable_backend(responses: list[Any], problem: str) -> None:
    async with serving(playing(*responses)) as (_, backend):
        with pytest.raises(BackendUnavailable) as caught:
            await collect(backend)
    assert caught.value.problem == problem


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_status_is_an_error_and_its_details_are_not_kept(code: grpc.StatusCode) -> None:
    async def fail(context: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
        yield hello
        await context.abort(code, f"bad: {SECRET_PROMPT}")

    is_rejected = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
    async with serving(fail) as (_, backend), aclosing(backend.generate(request())) as events:
        assert await anext(events) == Delta(content="Hello")
        with pytest.raises(BackendRejected if is_rejected else BackendUnavailable) as caught:
            await anext(events)
    assert caught.value.metadata() == {"model_id": "smol", "problem": f"gRPC status {code.name}"}
    if isinstance(caught.value, BackendUnavailable):
        assert caught.value.takes_none is (code is grpc.StatusCode.UNAVAILABLE)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


async def test_a_request_carries_everything_and_the_key() -> None:
    asked = request(
        prompt=Prompt(
            messages=(
                Message(role=Role.SYSTEM, parts=("Be ", "brief.")),
                Message(role=Role.ASSISTANT, tool_calls=(ToolCall(tool_call_id="c1", name="f", arguments="{}"),)),
                Message(role=Role.TOOL, parts=("sunny",), tool_call_id="c1"),
            ),
            tools=(Tool(name="f", description="Does.", parameters_json_schema="{}"),),
        ),
        sampling=Sampling(temperature=0.0, stop=("\n",), seed=0),
        response_format=ResponseFormat(
            kind=ResponseFormatKind.JSON_SCHEMA, schema_name="w", json_schema='{"type":"array"}'
        ),
        trace_context={"traceparent": TRACE_PARENT, "tracestate": "a=1"},
    )
    async with serving(playing(hello, stop), api_key=KEY) as (servicer, backend):
        await collect(backend, asked)
        sent = servicer.metadata[0]
        assert sent["authorization"] == f"Bearer {KEY}"
        assert (sent["traceparent"], sent["tracestate"]) == (TRACE_PARENT, "a=1")
        assert servicer.requests == [
            backend_pb2.GenerateRequest(
                model="smollm2-135m",
                messages=[
                    chat_pb2.Message(
                        role=chat_pb2.ROLE_SYSTEM,
                        content_parts=[chat_pb2.ContentPart(text="Be "), chat_pb2.ContentPart(text="brief.")],
                    ),
                    chat_pb2.Message(
                        role=chat_pb2.ROLE_ASSISTANT,
                        tool_calls=[chat_pb2.ToolCall(tool_call_id="c1", name="f", arguments="{}")],
                    ),
                    chat_pb2.Message(
                        role=chat_pb2.ROLE_TOOL,
                        content_parts=[chat_pb2.ContentPart(text="sunny")],
                        tool_call_id="c1",
                    ),
                ],
                sampling=chat_pb2.Sampling(temperature=0.0, stop=["\n"], seed=0),
                max_completion_tokens=16,
                tools=[chat_pb2.Tool(name="f", description="Does.", parameters_json_schema="{}")],
                response_format=chat_pb2.ResponseFormat(
                    json_schema=chat_pb2.ResponseFormat.JsonSchemaFormat(name="w", schema='{"type":"array"}')
                ),
            )
        ]
        # A temperature of 0 is sent; what was not set is not.
        assert servicer.requests[0].sampling.HasField("temperature")
        assert not servicer.requests[0].sampling.HasField("top_p")


async def test_a_model_the_backend_was_not_set_up_for_is_not_sent() -> None:
    async with serving(playing(hello, stop)) as (servicer, backend):
        with pytest.raises(BackendUnavailable, match="not set up"):
            await collect(backend, request(model_id="other"))
        assert servicer.requests == []


def test_the_key_is_not_shown_with_the_options() -> None:
    options = GrpcBackendOptions(backend_id="b", address="x", model_names={}, api_key=KEY, connect_timeout_seconds=1)
    assert KEY not in repr(options)


async def test_a_port_that_refuses_is_an_unavailable_backend_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        backend = backend_at(f"127.0.0.1:{unused.getsockname()[1]}", connect_timeout_seconds=60.0)
        with pytest.raises(BackendUnavailable, match="UNAVAILABLE"):
            await collect(backend)
        await backend.close()


async def test_a_connection_that_does_not_come_up_ends_with_its_time_limit() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)  # accepted by the system; nobody answers the HTTP/2 greeting
        backend = backend_at(f"127.0.0.1:{listener.getsockname()[1]}", connect_timeout_seconds=0.2)
        with pytest.raises(BackendUnavailable, match="UNAVAILABLE"):
            await collect(backend)
        await backend.close()


async def test_a_backend_that_comes_back_is_used_again() -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        backend = backend_at(address)
        with pytest.raises(BackendUnavailable):
            await collect(backend)
        server = aio.server(options=(("grpc.so_reuseport", 1),))
        backend_pb2_grpc.add_BackendServiceServicer_to_server(Servicer(playing(hello, stop)), server)  # type: ignore[no-untyped-call, unused-ignore]
        server.add_insecure_port(address)
        await server.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await collect(backend) == HELLO_EVENTS
                    break
                except BackendUnavailable:
                    await asyncio.sleep(0.1)
        await backend.close()
        await server.stop(None)


# --- leaving --------------------------------------------------------------------------------------------------------


async def test_closing_the_generator_cancels_the_call() -> None:
    async with serving(hang_after_hello) as (servicer, backend):
        async with aclosing(backend.generate(request())) as events:
            await anext(events)
        await asyncio.wait_for(servicer.is_cancelled.wait(), SOON_SECONDS)


@pytest.mark.parametrize("script", [hang, hang_after_hello])
async def test_a_cancelled_task_cancels_the_call(script: Script) -> None:
    async with serving(script) as (servicer, backend):
        task = asyncio.create_task(collect(backend))
        await asyncio.wait_for(servicer.is_reached.wait(), SOON_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(servicer.is_cancelled.wait(), SOON_SECONDS)


async def test_an_error_in_the_answer_cancels_the_call() -> None:
    async def go_on_after_the_end(_: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
        yield stop
        yield hello
        await asyncio.Event().wait()

    async with serving(go_on_after_the_end) as (servicer, backend):
        with pytest.raises(BackendUnavailable):
            await collect(backend)
        await asyncio.wait_for(servicer.is_cancelled.wait(), SOON_SECONDS)


async def test_an_endless_answer_is_read_no_faster_than_it_is_consumed() -> None:
    sent = 0

    async def endless(_: Context) -> AsyncIterator[backend_pb2.GenerateResponse]:
        nonlocal sent
        while True:
            yield Response(delta=chat_pb2.Delta(content="x" * 1000))
            sent += 1

    async with serving(endless) as (_, backend), aclosing(backend.generate(request())) as events:
        await anext(events)
        before = -1
        while before != sent:  # until it is stuck
            before = sent
            await asyncio.sleep(0.1)
        await anext(events)
    assert sent < 400  # 400 KB; without a limit it would not have stopped


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    for script in (hang_after_hello, playing(hello, stop), playing(hello)):
        async with serving(script) as (_, backend):
            for _ in range(3):
                async with aclosing(backend.generate(request())) as events:
                    await anext(events)
    started = asyncio.all_tasks() - before
    if started:
        _, left = await asyncio.wait(started, timeout=SOON_SECONDS)
        assert not left

"""Both adapters against the real llama.cpp server; over gRPC through the reference BackendService server."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
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
    UsageReport,
)
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass
from metergate.ports import Backend
from metergate.v1 import backend_pb2, backend_pb2_grpc

MODEL = "smollm2-135m"
SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "backend_server.py"
SOON_SECONDS = 20.0  # one core makes about 70 tokens/s when nothing else runs


def request(prompt: str, *, max_completion_tokens: int, stop: tuple[str, ...] = ()) -> BackendRequest:
    return BackendRequest(
        model_id="smol",
        prompt=Prompt(messages=(Message(role=Role.USER, parts=(prompt,)),)),
        sampling=Sampling(temperature=0.0, seed=1, stop=stop),
        response_format=ResponseFormat(),
        max_completion_tokens=max_completion_tokens,
    )


async def collect(backend: Backend, asked: BackendRequest) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [event async for event in backend.generate(asked)]


def text_of(events: list[BackendEvent]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


@asynccontextmanager
async def openai_backend(llama_server: str, *, stream: bool = True) -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(
        OpenAIBackendOptions(
            backend_id="http",
            url=f"{llama_server}/v1",
            model_names={"smol": MODEL},
            connect_timeout_seconds=5.0,
            stream=stream,
        )
    )
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def backend_server(llama_server: str) -> AsyncIterator[str]:
    """The reference server as a process, which must end well; gives its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), "--llama-url", llama_server, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SOON_SECONDS):
            ready, _, address = (await process.stdout.readline()).decode().strip().partition(" ")
        assert ready == "ready"
        yield address
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), SOON_SECONDS) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def grpc_backend(address: str, *, model: str = MODEL) -> AsyncIterator[GrpcBackend]:
    backend = GrpcBackend(
        GrpcBackendOptions(backend_id="grpc", address=address, model_names={"smol": model}, connect_timeout_seconds=5.0)
    )
    try:
        yield backend
    finally:
        await backend.close()


async def was_cut(llama_server: str) -> bool:
    """Once all slots of the server have come to rest: whether the last generation was stopped before its own end."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(SOON_SECONDS):
        while True:
            async with session.get(f"{llama_server}/slots") as response:
                slots = await response.json()
            if not any(slot["is_processing"] for slot in slots):
                last = max(slots, key=lambda slot: slot.get("id_task", -1))
                return bool(last["next_token"][0]["has_next_token"])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("prompt", ["Name three colours.", "用中文说一句问候的话。"])
async def test_streamed_and_whole_answers_are_the_same_text_and_usage(llama_server: str, prompt: str) -> None:
    asked = request(prompt, max_completion_tokens=24)
    async with openai_backend(llama_server) as streaming, openai_backend(llama_server, stream=False) as whole:
        streamed, at_once = await collect(streaming, asked), await collect(whole, asked)
    assert text_of(streamed)
    assert text_of(streamed) == text_of(at_once)
    assert [type(event) for event in at_once] == [Delta, Finish, UsageReport]
    for events in (streamed, at_once):
        finish, report = events[-2:]
        assert isinstance(finish, Finish)
        assert isinstance(report, UsageReport)
        assert finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert 0 < report.usage.get(TokenClass.COMPLETION) <= 24
        # The second request finds the prompt in the server's cache: the two classes together do not change.
        prompt_tokens = report.usage.get(TokenClass.PROMPT) + report.usage.get(TokenClass.CACHED_PROMPT)
        assert prompt_tokens > 10


async def test_the_length_limit_is_the_finish_reason(llama_server: str) -> None:
    async with openai_backend(llama_server) as backend:
        events = await collect(backend, request("Count to one hundred.", max_completion_tokens=5))
    assert Finish(reason=FinishReason.LENGTH) in events
    report = events[-1]
    assert isinstance(report, UsageReport)
    assert report.usage.get(TokenClass.COMPLETION) == 5


@pytest.mark.parametrize("sampling", [Sampling(temperature=2.0, seed=3, top_k=1), Sampling(temperature=2.0, min_p=1.0)])
async def test_top_k_and_min_p_leave_the_real_model_its_likeliest_token(llama_server: str, sampling: Sampling) -> None:
    asked = request("Name a colour.", max_completion_tokens=12)
    texts = []
    for chosen in (asked, replace(asked, sampling=sampling)):
        async with openai_backend(llama_server) as backend:
            texts.append(text_of(await collect(backend, chosen)))
    assert texts[0] == texts[1] != ""


async def test_a_json_answer_of_the_real_model_is_json_as_its_schema_says(llama_server: str) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
    )
    response_format = ResponseFormat(kind=ResponseFormatKind.JSON_SCHEMA, schema_name="answer", json_schema=schema)
    asked = replace(request("Count.", max_completion_tokens=64), response_format=response_format)
    async with openai_backend(llama_server) as backend:
        answer = json.loads(text_of(await collect(backend, asked)))
    assert set(answer) == {"n"}


async def test_a_prompt_beyond_the_context_is_rejected(llama_server: str) -> None:
    async with openai_backend(llama_server) as backend:
        with pytest.raises(BackendRejected, match="HTTP 400"):
            await collect(backend, request("word " * 5000, max_completion_tokens=5))


async def test_closing_the_generator_stops_the_real_model(llama_server: str) -> None:
    asked = request("Write a very long story.", max_completion_tokens=1500)
    async with openai_backend(llama_server) as backend:
        await collect(backend, request("Hello!", max_completion_tokens=3))
        assert not await was_cut(llama_server)
        async with aclosing(backend.generate(asked)) as events:
            await anext(events)
        assert await was_cut(llama_server)


async def test_the_reference_server_serves_the_model_natively(llama_server: str) -> None:
    asked = request("Name three colours.", max_completion_tokens=16)
    async with (
        backend_server(llama_server) as address,
        grpc_backend(address) as backend,
        openai_backend(llama_server) as direct,
    ):
        natively, directly = await collect(backend, asked), await collect(direct, asked)
        assert text_of(natively) == text_of(directly)
        assert [type(event) for event in natively[-2:]] == [Finish, UsageReport]
        with pytest.raises(BackendRejected, match="INVALID_ARGUMENT"):
            await collect(backend, request("word " * 5000, max_completion_tokens=5))
        async with grpc_backend(address, model="other") as other:
            with pytest.raises(BackendUnavailable, match="NOT_FOUND"):
                await collect(other, asked)
        async with aclosing(backend.generate(request("Write a long story.", max_completion_tokens=1500))) as events:
            await anext(events)
        assert await was_cut(llama_server)
        await check_services(address)


async def check_services(address: str) -> None:
    """The reference server answers GetModelInfo, health and reflection."""
    async with aio.insecure_channel(address) as channel:
        info = await backend_pb2_grpc.BackendServiceStub(channel).GetModelInfo(backend_pb2.GetModelInfoRequest())
        assert info == backend_pb2.GetModelInfoResponse(model=MODEL, context_tokens=2048, sends_usage=True)
        # These two packages' types know no stub of grpc.aio.
        healths: Any = health_pb2_grpc.HealthStub(channel)
        health = await healths.Check(health_pb2.HealthCheckRequest(service="metergate.v1.BackendService"))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        reflections: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflections.ServerReflectionInfo(iter([question]))
        services = {service.name async for answer in answers for service in answer.list_services_response.service}
        assert "metergate.v1.BackendService" in services

"""Scripted engines of vLLM's and SGLang's protocols, served over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

Kind = Literal["vllm", "sglang"]
HANG = "HANG"  # say nothing more until the caller is gone
DETAILS = "the-secret-prompt"  # what a status may quote

PROMPT_TOKENS = 7


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The message that completes an answer."""

    reason: str = "stop"
    cached: int = 0
    reasoning: int = 0  # SGLang only
    prompt: int = PROMPT_TOKENS
    output_ids: tuple[int, ...] = ()  # instead of the last chunk's


# Ids of a chunk, the end, a status, or HANG.
Step = Sequence[int] | Complete | grpc.StatusCode | str


@dataclass
class ScriptedEngine:
    """Plays its script to every request and keeps what it saw."""

    kind: Kind
    script: Sequence[Step]
    served_model_name: str = "model-1"
    is_generation: bool = True
    context_tokens: int = 4096
    vocabulary_tokens: int = 100_000
    defaults_json: str = ""
    is_healthy: bool = True
    is_abort_refused: bool = False
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    is_aborted: asyncio.Event = field(default_factory=asyncio.Event)
    is_reached: asyncio.Event = field(default_factory=asyncio.Event)
    looks: int = 0
    models_run_by_looks: int = 0
    port: int = 0

    async def play(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.is_reached.set()
        last: Sequence[int] = ()
        count = 0
        for step in self.script:
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, DETAILS)
            elif isinstance(step, Complete):
                yield self._complete(step, step.output_ids or last, count)
            elif step == HANG:
                await asyncio.Event().wait()
            else:
                last = [int(token_id) for token_id in step]
                count += len(last)
                yield self._chunk(last, count)

    def _chunk(self, ids: Sequence[int], count: int) -> Any:
        if self.kind == "vllm":  # its counts are of the chunk
            return vllm_engine_pb2.GenerateResponse(
                chunk=vllm_engine_pb2.GenerateStreamChunk(
                    token_ids=ids, prompt_tokens=PROMPT_TOKENS, completion_tokens=len(ids)
                )
            )
        return sglang_scheduler_pb2.GenerateResponse(  # its counts are cumulative
            chunk=sglang_scheduler_pb2.GenerateStreamChunk(
                token_ids=ids, prompt_tokens=PROMPT_TOKENS, completion_tokens=count
            )
        )

    def _complete(self, step: Complete, ids: Sequence[int], count: int) -> Any:
        """Both repeat the ids of the last chunk."""
        if self.kind == "vllm":
            return vllm_engine_pb2.GenerateResponse(
                complete=vllm_engine_pb2.GenerateComplete(
                    output_ids=ids,
                    finish_reason=step.reason,
                    prompt_tokens=step.prompt,
                    completion_tokens=len(ids),
                    cached_tokens=step.cached,
                )
            )
        return sglang_scheduler_pb2.GenerateResponse(
            complete=sglang_scheduler_pb2.GenerateComplete(
                output_ids=ids,
                finish_reason=step.reason,
                prompt_tokens=step.prompt,
                completion_tokens=count or len(ids),
                cached_tokens=step.cached,
                reasoning_tokens=step.reasoning,
            )
        )

    async def note_abort(self, ids: Sequence[str], context: Any) -> None:
        if self.is_abort_refused:
            await context.abort(grpc.StatusCode.INTERNAL, DETAILS)
        self.aborted += ids
        self.is_aborted.set()

    def info(self) -> dict[str, Any]:
        self.looks += 1
        return {
            "model_path": "/models/one",
            "served_model_name": self.served_model_name,
            "is_generation": self.is_generation,
            "max_context_length": self.context_tokens,
            "vocab_size": self.vocabulary_tokens,
            "default_sampling_params_json": self.defaults_json,
        }


class VllmServicer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for message in self._engine.play(request, context):
            yield message

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._engine.note_abort(list(request.request_ids), context)
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        return vllm_engine_pb2.HealthCheckResponse(healthy=self._engine.is_healthy)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return vllm_engine_pb2.GetModelInfoResponse(**self._engine.info())


class SglangServicer(sglang_scheduler_pb2_grpc.SglangSchedulerServicer):  # type: ignore[misc]
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for message in self._engine.play(request, context):
            yield message

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._engine.note_abort([request.request_id], context)
        return sglang_scheduler_pb2.AbortResponse(success=True)

    async def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._engine.models_run_by_looks += 1  # the real one generates a token
        return sglang_scheduler_pb2.HealthCheckResponse(healthy=True)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return sglang_scheduler_pb2.GetModelInfoResponse(**self._engine.info())


class SglangHealth(health_pb2_grpc.HealthServicer):
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert request.service == "sglang.grpc.scheduler.SglangScheduler"
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._engine.is_healthy else states.NOT_SERVING)


@asynccontextmanager
async def serving(engine: ScriptedEngine) -> AsyncIterator[ScriptedEngine]:
    """The engine, served on a free port, or the one that it had."""
    server = aio.server()
    if engine.kind == "vllm":
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(VllmServicer(engine), server)
    else:
        sglang_scheduler_pb2_grpc.add_SglangSchedulerServicer_to_server(SglangServicer(engine), server)
        health_pb2_grpc.add_HealthServicer_to_server(SglangHealth(engine), server)
    engine.port = server.add_insecure_port(f"127.0.0.1:{engine.port}")
    await server.start()
    try:
        yield engine
    finally:
        await server.stop(None)

"""SGLang's engine protocol, ``sglang.grpc.scheduler.SglangScheduler``.

Its own health check makes the model generate a token, which nobody would pay for: the standard ``grpc.health.v1`` is
asked instead, which SGLang answers from its scheduler's signs of life. Stop texts are found by the gateway. The
protocol has no seed: a request with one is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import sglang_scheduler_pb2, sglang_scheduler_pb2_grpc

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.engine import EngineInfo, sampling_values
from metergate.backends.engine_answer import ChunkedAnswer, usage_report
from metergate.core.errors import BackendRejected
from metergate.core.inference import BackendRequest, ResponseFormatKind, UsageReport

_SERVICE = "sglang.grpc.scheduler.SglangScheduler"
_ANY_OBJECT = '{"type": "object"}'


class SglangProtocol:
    """An engine.EngineProtocol."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = sglang_scheduler_pb2_grpc.SglangSchedulerStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def encode(
        self, request: BackendRequest, engine_request_id: str, defaults: Mapping[str, float]
    ) -> sglang_scheduler_pb2.GenerateRequest:
        """The message of a request; BackendRejected for a seed."""
        if request.sampling.seed is not None:
            raise BackendRejected(model_id=request.model_id, problem="its protocol has no seed")
        return sglang_scheduler_pb2.GenerateRequest(
            request_id=engine_request_id,
            tokenized=sglang_scheduler_pb2.TokenizedInput(input_ids=request.prompt_token_ids),
            sampling_params=_sampling_params(request, defaults),
            stream=True,
        )

    def generate(self, message: sglang_scheduler_pb2.GenerateRequest, metadata: Sequence[tuple[str, str]]) -> Any:  # noqa: ANN401
        """Begin the call."""
        return self._stub.Generate(message, metadata=metadata)

    def answer(self, checks: AnswerChecks) -> "SglangAnswer":
        """A reader for one answer."""
        return SglangAnswer(checks)

    async def abort(self, engine_request_id: str, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> None:
        """Stop a request."""
        message = sglang_scheduler_pb2.AbortRequest(request_id=engine_request_id, reason="its reader left")
        await self._stub.Abort(message, metadata=metadata, timeout=timeout_seconds)

    async def is_healthy(self, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> bool:
        """Whether its scheduler shows signs of life; this runs no model."""
        message = health_pb2.HealthCheckRequest(service=_SERVICE)
        health = await self._health.Check(message, metadata=tuple(metadata), timeout=timeout_seconds)
        return bool(health.status == health_pb2.HealthCheckResponse.SERVING)

    async def info(self, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> EngineInfo:
        """What it says of itself."""
        message = sglang_scheduler_pb2.GetModelInfoRequest()
        return EngineInfo.read(await self._stub.GetModelInfo(message, metadata=metadata, timeout=timeout_seconds))


def _sampling_params(request: BackendRequest, defaults: Mapping[str, float]) -> sglang_scheduler_pb2.SamplingParams:
    sampling = request.sampling
    params = sglang_scheduler_pb2.SamplingParams(
        top_k=(int(defaults.get("top_k", -1)) or -1) if sampling.top_k is None else sampling.top_k,  # -1: all
        **sampling_values(sampling, defaults),
        max_new_tokens=request.max_completion_tokens,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        n=1,
    )
    if request.response_format.kind is ResponseFormatKind.JSON_OBJECT:
        params.json_schema = _ANY_OBJECT
    elif request.response_format.kind is ResponseFormatKind.JSON_SCHEMA:
        params.json_schema = request.response_format.json_schema
    return params


class SglangAnswer(ChunkedAnswer):
    """Reads one answer. The counts of the message that completes it are of the whole answer."""

    def _usage(self, complete: sglang_scheduler_pb2.GenerateComplete) -> list[UsageReport]:
        return usage_report(
            self._checks,
            prompt=complete.prompt_tokens,
            cached=complete.cached_tokens,
            completion=complete.completion_tokens,
            reasoning=complete.reasoning_tokens,
        )

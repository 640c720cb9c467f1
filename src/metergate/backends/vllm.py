"""vLLM's engine protocol, ``vllm.grpc.engine.VllmEngine``.

Stop texts are not sent: the gateway finds them in the text that it makes, and an engine without a tokenizer could not.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpc import aio
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.engine import EngineInfo, sampling_values
from metergate.backends.engine_answer import ChunkedAnswer, usage_report
from metergate.core.errors import BackendRejected
from metergate.core.inference import BackendEvent, BackendRequest, ResponseFormatKind, UsageReport

_SEED_MAX = 2**31 - 1  # the protocol's seed has 32 bits


class VllmProtocol:
    """An engine.EngineProtocol."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)

    def encode(
        self, request: BackendRequest, engine_request_id: str, defaults: Mapping[str, float]
    ) -> vllm_engine_pb2.GenerateRequest:
        """The message of a request; BackendRejected for a seed of more than 32 bits."""
        seed = request.sampling.seed
        if seed is not None and not -_SEED_MAX - 1 <= seed <= _SEED_MAX:
            raise BackendRejected(model_id=request.model_id, problem="its seeds have 32 bits")
        return vllm_engine_pb2.GenerateRequest(
            request_id=engine_request_id,
            tokenized=vllm_engine_pb2.TokenizedInput(input_ids=request.prompt_token_ids),
            sampling_params=_sampling_params(request, defaults),
            stream=True,
        )

    def generate(self, message: vllm_engine_pb2.GenerateRequest, metadata: Sequence[tuple[str, str]]) -> Any:  # noqa: ANN401
        """Begin the call."""
        return self._stub.Generate(message, metadata=metadata)

    def answer(self, checks: AnswerChecks) -> "VllmAnswer":
        """A reader for one answer."""
        return VllmAnswer(checks)

    async def abort(self, engine_request_id: str, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> None:
        """Stop a request."""
        message = vllm_engine_pb2.AbortRequest(request_ids=[engine_request_id])
        await self._stub.Abort(message, metadata=metadata, timeout=timeout_seconds)

    async def is_healthy(self, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> bool:
        """Whether its engine is alive; this runs no model."""
        message = vllm_engine_pb2.HealthCheckRequest()
        health = await self._stub.HealthCheck(message, metadata=metadata, timeout=timeout_seconds)
        return bool(health.healthy)

    async def info(self, metadata: Sequence[tuple[str, str]], timeout_seconds: float) -> EngineInfo:
        """What it says of itself."""
        message = vllm_engine_pb2.GetModelInfoRequest()
        return EngineInfo.read(await self._stub.GetModelInfo(message, metadata=metadata, timeout=timeout_seconds))


def _sampling_params(request: BackendRequest, defaults: Mapping[str, float]) -> vllm_engine_pb2.SamplingParams:
    sampling = request.sampling
    params = vllm_engine_pb2.SamplingParams(
        top_k=max(0, int(defaults.get("top_k", 0))) if sampling.top_k is None else sampling.top_k,  # 0: all
        **sampling_values(sampling, defaults),
        max_tokens=request.max_completion_tokens,
        seed=sampling.seed,
        skip_special_tokens=True,
        n=1,
    )
    if request.response_format.kind is ResponseFormatKind.JSON_OBJECT:
        params.json_object = True
    elif request.response_format.kind is ResponseFormatKind.JSON_SCHEMA:
        params.json_schema = request.response_format.json_schema
    return params


class VllmAnswer(ChunkedAnswer):
    """Reads one answer. Each chunk says how many ids are new: completion tokens are added up over the chunks."""

    def __init__(self, checks: AnswerChecks) -> None:
        super().__init__(checks)
        self._completion_tokens = 0

    def read(self, message: vllm_engine_pb2.GenerateResponse) -> Iterator[BackendEvent]:
        """The events of one message; BackendUnavailable if they make no sense."""
        if message.HasField("chunk"):
            self._completion_tokens += message.chunk.completion_tokens
        return super().read(message)

    def _usage(self, complete: vllm_engine_pb2.GenerateComplete) -> list[UsageReport]:
        return usage_report(
            self._checks,
            prompt=complete.prompt_tokens,
            cached=complete.cached_tokens,
            completion=self._completion_tokens if self._has_chunks else complete.completion_tokens,
        )

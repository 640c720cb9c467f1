"""Engines that take and give token ids over gRPC: vLLM and SGLang, each with a protocol of its own.

An engine has one model, and its requests do not name it: so before it is used it must say that it runs the model that
is sold (L8). Leaving ``generate`` before the answer ended cancels the call and aborts the request by its id: an engine
behind a proxy may not hear of the first.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self
from uuid import uuid4

from grpc import aio

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.grpc_channel import ANSWER_BYTES_MAX, failure, open_channel
from metergate.backends.known_models import known
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import BackendEvent, BackendRequest, Sampling
from metergate.core.parameters import ALL_PARAMETERS, Parameter

_log = logging.getLogger(__name__)

# What the protocols can say. Tools they take as part of the prompt, but give back raw text: such are not taken.
VLLM_PARAMETERS = ALL_PARAMETERS - {Parameter.TOOLS, Parameter.TOOL_CHOICE}
SGLANG_PARAMETERS = VLLM_PARAMETERS - {Parameter.SEED}

_Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What an engine must say of the model that it runs."""

    name: str  # as it is served, or the path that it was loaded from
    context_tokens: int  # at least so many
    token_ids_max: int  # of the vocabulary that the gateway counts with; engines round theirs up


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBackendOptions:
    """How to reach one engine."""

    backend_id: str
    kind: Literal["vllm", "sglang"]
    address: str  # "127.0.0.1:50071", or any gRPC target
    models: Mapping[str, EngineModel]  # by the model's id in this gateway
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token: engines have none, proxies may
    connect_timeout_seconds: float  # >= 0.1; also of each look at its health and model
    tls: bool = False  # True: the backend must prove that it is the host of its address
    ca_pem: bytes | None = None  # the authorities it must prove it to; None: the public ones
    own_pem: tuple[bytes, bytes] | None = field(default=None, repr=False)  # key and certificate that are shown to it


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    names: frozenset[str]  # of its model
    is_generation: bool
    context_tokens: int  # 0: it does not say
    vocabulary_tokens: int  # 0: it does not say
    defaults: Mapping[str, float]  # of sampling, by their names in the protocol

    @classmethod
    def read(cls, message: Any) -> Self:  # noqa: ANN401 - each protocol's own
        """What an answer to GetModelInfo says: the protocols name its fields alike."""
        return cls(
            names=frozenset({message.served_model_name, message.model_path} - {""}),
            is_generation=message.is_generation,
            context_tokens=message.max_context_length,
            vocabulary_tokens=message.vocab_size,
            defaults=read_defaults(message.default_sampling_params_json),
        )

    def problem(self, model: EngineModel) -> str | None:
        """Why it cannot run the model, or None."""
        if model.name not in self.names:
            return f"it runs {' or '.join(sorted(self.names)) or 'a model without a name'}, not {model.name}"
        if not self.is_generation:
            return "its model does not generate text"
        if 0 < self.context_tokens < model.context_tokens:
            return f"its context has {self.context_tokens} tokens, not {model.context_tokens}"
        if 0 < self.vocabulary_tokens < model.token_ids_max:
            return f"its vocabulary has {self.vocabulary_tokens} ids, the model's tokenizer {model.token_ids_max}"
        return None


# The sampling parameters that a model's own files may set for requests that do not.
_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_defaults(text: str) -> dict[str, float]:
    """The defaults of sampling that an engine reports as JSON; of what is no number, none."""
    try:
        values: Any = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in _DEFAULTS if type(values.get(name)) in (int, float)}


def sampling_values(sampling: Sampling, defaults: Mapping[str, float]) -> dict[str, float]:
    """The parameters of sampling that the protocols name alike, each of them: a protocol's zeros are no defaults."""
    return {
        "temperature": defaults.get("temperature", 1.0) if sampling.temperature is None else sampling.temperature,
        "top_p": defaults.get("top_p", 1.0) if sampling.top_p is None else sampling.top_p,
        "min_p": defaults.get("min_p", 0.0) if sampling.min_p is None else sampling.min_p,
        "repetition_penalty": defaults.get("repetition_penalty", 1.0),
        "frequency_penalty": sampling.frequency_penalty or 0.0,
        "presence_penalty": sampling.presence_penalty or 0.0,
    }


class EngineAnswer(Protocol):
    """Reads one answer. BackendUnavailable if it makes no sense."""

    def read(self, message: Any) -> Iterator[BackendEvent]:  # noqa: ANN401 - each protocol's own
        """The events of one message."""
        ...


class EngineProtocol(Protocol):
    """What differs between engines; messages are each protocol's own. Failures of calls are gRPC's AioRpcError."""

    def encode(self, request: BackendRequest, engine_request_id: str, defaults: Mapping[str, float]) -> Any:  # noqa: ANN401
        """The message of a request; BackendRejected for what the protocol cannot ask for."""
        ...

    def generate(self, message: Any, metadata: _Metadata) -> Any:  # noqa: ANN401
        """Begin the call."""
        ...

    def answer(self, checks: AnswerChecks) -> EngineAnswer:
        """A reader for one answer."""
        ...

    async def abort(self, engine_request_id: str, metadata: _Metadata, timeout_seconds: float) -> None:
        """Stop a request."""
        ...

    async def is_healthy(self, metadata: _Metadata, timeout_seconds: float) -> bool:
        """Whether it can run requests, by a look that runs no model."""
        ...

    async def info(self, metadata: _Metadata, timeout_seconds: float) -> EngineInfo:
        """What it says of itself."""
        ...


def open_protocol(kind: Literal["vllm", "sglang"], channel: aio.Channel) -> EngineProtocol:
    """The protocol over a channel. Imported only where it is wanted: its stubs are an optional extra."""
    if kind == "vllm":
        from metergate.backends.vllm import VllmProtocol

        return VllmProtocol(channel)
    from metergate.backends.sglang import SglangProtocol

    return SglangProtocol(channel)


class EngineBackend:
    """One engine. Create it within the event loop that uses it."""

    def __init__(self, options: EngineBackendOptions) -> None:
        self._options = options
        self._channel = open_channel(options, message_bytes_max=ANSWER_BYTES_MAX)
        self._protocol = open_protocol(options.kind, self._channel)
        self._metadata = (("authorization", f"Bearer {options.api_key}"),) if options.api_key is not None else ()
        self._info: EngineInfo | None = None  # what the last look found; None: look again before the next request
        self._problem = ""  # the last that was logged
        self._aborts: set[asyncio.Task[None]] = set()

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        return self._options.backend_id

    async def is_up(self) -> bool:
        """Whether it answers, is healthy, and runs the models that it is set up for."""
        self._info = None
        try:
            async with asyncio.timeout(self._options.connect_timeout_seconds):
                if not await self._protocol.is_healthy(self._metadata, self._options.connect_timeout_seconds):
                    return False
                info = await self._look()
        except (TimeoutError, aio.AioRpcError):
            return False
        problems = [problem for model in self._options.models.values() if (problem := info.problem(model))]
        self._tell("; ".join(problems))
        return not problems

    async def _look(self) -> EngineInfo:
        self._info = await self._protocol.info(self._metadata, self._options.connect_timeout_seconds)
        return self._info

    def _tell(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("backend %s is not used: %s", self.backend_id, problem)
        self._problem = problem

    async def close(self) -> None:
        """Let what is being aborted be aborted, cancel all calls and close the connection."""
        if self._aborts:
            await asyncio.wait(self._aborts)
        await self._channel.close()

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        """Run the request: token ids, one finish reason after them, and usage if the engine reports any.

        BackendRejected if the request as such was refused (by the engine, or because its protocol has no word for what
        is asked); BackendUnavailable for all else.
        """
        info = await self._checked_info(request.model_id)
        engine_request_id = uuid4().hex
        message = self._protocol.encode(request, engine_request_id, info.defaults)
        checks = AnswerChecks(backend_id=self.backend_id, model_id=request.model_id)
        answer = self._protocol.answer(checks)
        call = self._protocol.generate(message, (*self._metadata, *request.trace_context.items()))
        is_over = False  # on the engine's side; gRPC calls it done, too, when it was left on ours
        try:
            while (piece := await call.read()) is not aio.EOF:
                for event in answer.read(piece):
                    yield event
            is_over = True
            checks.end()
        except aio.AioRpcError as exc:
            is_over = True
            self._info = None  # perhaps another engine answers next
            # Not chained: the status's details would be printed with it.
            raise failure(exc, request.model_id) from None
        finally:
            if not is_over:
                call.cancel()
                self._abort(engine_request_id)

    async def _checked_info(self, model_id: str) -> EngineInfo:
        model = known(self._options.models, model_id)
        try:
            info = self._info or await self._look()
        except aio.AioRpcError as exc:
            # Whatever a look's status is, the request is not what was refused.
            status = f"gRPC status {exc.code().name}"
            raise BackendUnavailable(model_id=model_id, problem=status, takes_none=True) from None
        problem = info.problem(model)
        if problem is not None:
            self._info = None
            raise BackendUnavailable(model_id=model_id, problem=problem, takes_none=True)
        return info

    def _abort(self, engine_request_id: str) -> None:
        """Abort in a task of its own, which no cancellation of the request reaches."""
        aborting = asyncio.create_task(self._abort_now(engine_request_id))
        self._aborts.add(aborting)
        aborting.add_done_callback(self._aborts.discard)

    async def _abort_now(self, engine_request_id: str) -> None:
        try:
            await self._protocol.abort(engine_request_id, self._metadata, self._options.connect_timeout_seconds)
        except aio.AioRpcError as exc:
            # The call was cancelled, which stops an engine that is not behind a proxy.
            _log.warning("backend %s could not abort a request: gRPC status %s", self.backend_id, exc.code().name)

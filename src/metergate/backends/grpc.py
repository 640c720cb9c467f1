"""Backends that implement ``metergate.v1.BackendService``.

Leaving ``generate`` in any way, a cancellation included, cancels the call: that is what stops the generation on the
backend. The adapter limits the connecting only; how long an answer may take is decided by its reader. The details of a
status are not passed on: they are the backend's own words and may quote the prompt.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.grpc_channel import ANSWER_BYTES_MAX, failure, open_channel
from metergate.backends.known_models import known
from metergate.backends.vector_checks import IN_LOOP_NUMBERS_MAX, checked_vectors, prompt_usage, single_precision
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected
from metergate.core.inference import (
    DEFAULT_SAMPLING,
    BackendEvent,
    BackendRequest,
    Delta,
    Finish,
    Message,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolChoice,
    ToolChoiceKind,
    UsageReport,
)
from metergate.core.parameters import Parameter, parameters_of
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import backend_pb2, backend_pb2_grpc, chat_pb2, usage_pb2

_log = logging.getLogger(__name__)

# Of a backend that embeds: NUMBERS_MAX numbers of 4 bytes, and what surrounds each vector.
_VECTORS_BYTES_MAX = 5 * 1024 * 1024

# A look at a backend that is busy does not wait for it.
_LOOK_SECONDS = 0.5

_ROLES = {
    Role.SYSTEM: chat_pb2.ROLE_SYSTEM,
    Role.USER: chat_pb2.ROLE_USER,
    Role.ASSISTANT: chat_pb2.ROLE_ASSISTANT,
    Role.TOOL: chat_pb2.ROLE_TOOL,
}

_FINISH_REASONS: dict[int, FinishReason] = {
    chat_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    chat_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    chat_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    chat_pb2.FINISH_REASON_CONTENT_FILTER: FinishReason.CONTENT_FILTER,
}

_TOKEN_CLASSES = {
    usage_pb2.TOKEN_CLASS_PROMPT: TokenClass.PROMPT,
    usage_pb2.TOKEN_CLASS_CACHED_PROMPT: TokenClass.CACHED_PROMPT,
    usage_pb2.TOKEN_CLASS_COMPLETION: TokenClass.COMPLETION,
    usage_pb2.TOKEN_CLASS_REASONING: TokenClass.REASONING,
}

_TOKENS_MAX = 2**31 - 1  # a count above this is no count; every sum of such counts fits in 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcBackendOptions:
    """How to reach one backend that implements BackendService."""

    backend_id: str
    address: str  # "127.0.0.1:50061", or any gRPC target
    model_names: Mapping[str, str]  # the backend's own name of each model, by the model's id in this gateway
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token in the call's metadata
    connect_timeout_seconds: float  # >= 0.1; name look-up included
    embeds: bool = False  # whether a model of it makes vectors, whose answers are larger
    tls: bool = False  # True: the backend must prove that it is the host of its address
    ca_pem: bytes | None = None  # the authorities it must prove it to; None: the public ones
    own_pem: tuple[bytes, bytes] | None = field(default=None, repr=False)  # key and certificate that are shown to it


class GrpcBackend:
    """One BackendService backend. Create it within the event loop that uses it."""

    def __init__(self, options: GrpcBackendOptions) -> None:
        self._options = options
        self._channel = open_channel(
            options, message_bytes_max=_VECTORS_BYTES_MAX if options.embeds else ANSWER_BYTES_MAX
        )
        self._stub: backend_pb2_grpc.BackendServiceAsyncStub = backend_pb2_grpc.BackendServiceStub(self._channel)
        self._check_health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._metadata = (("authorization", f"Bearer {options.api_key}"),) if options.api_key is not None else ()

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        return self._options.backend_id

    async def is_up(self) -> bool:
        """Whether it can be connected to within the connect timeout, and does not say itself that it does not serve.

        It is asked by gRPC's health protocol. One without that service, and one that is slow to answer, is up.
        """
        try:
            async with asyncio.timeout(self._options.connect_timeout_seconds):
                await self._channel.channel_ready()
        except TimeoutError:
            return False
        try:
            answer = await self._check_health(
                health_pb2.HealthCheckRequest(), metadata=self._metadata, timeout=_LOOK_SECONDS
            )
        except aio.AioRpcError as exc:
            return exc.code() is not grpc.StatusCode.UNAVAILABLE
        return bool(answer.status != health_pb2.HealthCheckResponse.NOT_SERVING)

    async def close(self) -> None:
        """Cancel all calls and close the connection."""
        await self._channel.close()

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        """Run the request: deltas, one finish reason after them, and usage if the backend reports any.

        BackendRejected if the request as such was refused (INVALID_ARGUMENT, OUT_OF_RANGE); BackendUnavailable for all
        else.
        """
        model = known(self._options.model_names, request.model_id)
        reader = AnswerReader(backend_id=self.backend_id, model_id=request.model_id)
        metadata = (*self._metadata, *request.trace_context.items())
        call = self._stub.Generate(encode_request(request, model=model), metadata=metadata)
        try:
            # Iterated: ``call.read()`` does more a message.
            async for message in call:
                text = _text_only(message)
                if text:
                    yield reader.text(text)
                    continue
                for event in reader.read(message):
                    yield event
            reader.end()
        except aio.AioRpcError as exc:
            raise failure(exc, request.model_id) from None  # its details would be printed with it
        finally:
            call.cancel()  # of a call that has ended: nothing

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        """Return a vector for each input; the errors are those of ``generate``."""
        metadata = (*self._metadata, *request.trace_context.items())
        asked = backend_pb2.BackendServiceEmbedRequest(
            model=known(self._options.model_names, request.model_id),
            inputs=request.inputs,
            dimensions=request.dimensions if request.asks_dimensions else 0,
        )
        try:
            answer = await self._stub.Embed(asked, metadata=metadata)
        except aio.AioRpcError as exc:
            raise failure(exc, request.model_id) from None  # its details would be printed with it
        if len(request.inputs) * request.dimensions > IN_LOOP_NUMBERS_MAX:
            return await asyncio.to_thread(_embeddings, answer, request)
        return _embeddings(answer, request)


def _text_only(message: backend_pb2.GenerateResponse) -> str:
    """The content of a message that has nothing else, as nearly all have; else ""."""
    delta = message.delta
    is_only = not (message.finish_reason or message.HasField("usage") or delta.reasoning_content or delta.tool_calls)
    return delta.content if is_only else ""


# --- the request ----------------------------------------------------------------------------------------------------

# What a GenerateRequest can say of what a request may set: all of it. A server that was built for an older version
# refuses what it does not know; the configuration can say so beforehand.
PARAMETERS = frozenset(
    {
        Parameter.TEMPERATURE,
        Parameter.TOP_P,
        Parameter.TOP_K,
        Parameter.MIN_P,
        Parameter.STOP,
        Parameter.SEED,
        Parameter.PRESENCE_PENALTY,
        Parameter.FREQUENCY_PENALTY,
        Parameter.TOOLS,
        Parameter.TOOL_CHOICE,
        Parameter.JSON_OBJECT,
        Parameter.JSON_SCHEMA,
        Parameter.ASSISTANT_LAST,
    }
)


def encode_request(request: BackendRequest, *, model: str) -> backend_pb2.GenerateRequest:
    """The message for ``model``, the backend's own name of it; BackendRejected for a parameter that it cannot say."""
    unsaid = [parameter for parameter in parameters_of(request) if parameter not in PARAMETERS]
    if unsaid:
        raise BackendRejected(model_id=request.model_id, problem=f"its protocol has no {', '.join(unsaid)}")
    return backend_pb2.GenerateRequest(
        model=model,
        messages=[_message(message) for message in request.prompt.messages],
        sampling=None if request.sampling is DEFAULT_SAMPLING else _sampling(request.sampling),
        max_completion_tokens=request.max_completion_tokens,
        tools=[_tool(tool) for tool in request.prompt.tools],
        response_format=_response_format(request.response_format),
        tool_choice=_tool_choice(request.tool_choice),
    )


def _message(message: Message) -> chat_pb2.Message:
    return chat_pb2.Message(
        role=_ROLES[message.role],
        content_parts=[chat_pb2.ContentPart(text=part) for part in message.parts],
        tool_calls=[
            chat_pb2.ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _sampling(sampling: Sampling) -> chat_pb2.Sampling:
    return chat_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=sampling.stop,
        seed=sampling.seed,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )


def _tool(tool: Tool) -> chat_pb2.Tool:
    return chat_pb2.Tool(
        name=tool.name, description=tool.description, parameters_json_schema=tool.parameters_json_schema
    )


def _response_format(response_format: ResponseFormat) -> chat_pb2.ResponseFormat | None:
    if response_format.kind is ResponseFormatKind.JSON_OBJECT:
        return chat_pb2.ResponseFormat(json_object=chat_pb2.ResponseFormat.JsonObjectFormat())
    if response_format.kind is ResponseFormatKind.JSON_SCHEMA:
        return chat_pb2.ResponseFormat(
            json_schema=chat_pb2.ResponseFormat.JsonSchemaFormat(
                name=response_format.schema_name, schema=response_format.json_schema
            )
        )
    return None


def _tool_choice(choice: ToolChoice) -> chat_pb2.ToolChoice | None:
    match choice.kind:
        case ToolChoiceKind.FUNCTION:
            return chat_pb2.ToolChoice(function=choice.function)
        case ToolChoiceKind.REQUIRED:
            return chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)
        case _:
            return None


# --- the answer -----------------------------------------------------------------------------------------------------


def _embeddings(answer: backend_pb2.BackendServiceEmbedResponse, request: EmbeddingBackendRequest) -> Embeddings:
    vectors = ((index, single_precision(embedding.values)) for index, embedding in enumerate(answer.embeddings))
    usage_reported = None
    if answer.HasField("usage"):
        tokens = {_TOKEN_CLASSES.get(count.token_class): count.tokens for count in answer.usage.token_counts}
        known = {token_class: count for token_class, count in tokens.items() if token_class is not None}
        is_usable = len(known) == len(answer.usage.token_counts) and max(known.values(), default=0) <= _TOKENS_MAX
        usage_reported = prompt_usage(known) if is_usable else None
    return Embeddings(vectors=checked_vectors(request, vectors), usage_reported=usage_reported)


class AnswerReader:
    """Reads one answer. Every method raises BackendUnavailable when the answer makes no sense."""

    def __init__(self, *, backend_id: str, model_id: str) -> None:
        self._backend_id = backend_id
        self._model_id = model_id
        self._checks = AnswerChecks(backend_id=backend_id, model_id=model_id)

    def text(self, content: str) -> Delta:
        """The only event of a message with content, which is not empty, and nothing else."""
        self._checks.before_delta()
        return Delta(content=content)

    def read(self, message: backend_pb2.GenerateResponse) -> Iterator[BackendEvent]:
        """The events of one message."""
        delta = self._delta(message.delta)
        if not delta.is_empty():
            self._checks.before_delta()
            yield delta
        if message.finish_reason != chat_pb2.FINISH_REASON_UNSPECIFIED and self._checks.finish():
            yield Finish(reason=self._finish_reason(message.finish_reason))
        if message.HasField("usage"):
            usage = self._usage(message.usage)
            if usage is not None:
                yield UsageReport(usage=usage)

    def end(self) -> None:
        """Say that nothing more comes; it is an error before the finish reason."""
        self._checks.end()

    def _delta(self, delta: chat_pb2.Delta) -> Delta:
        if not delta.tool_calls:
            return Delta(content=delta.content, reasoning_content=delta.reasoning_content)
        pieces = (
            self._checks.tool_call(
                index=call.index, tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments
            )
            for call in delta.tool_calls
        )
        return Delta(
            content=delta.content,
            reasoning_content=delta.reasoning_content,
            tool_calls=tuple(piece for piece in pieces if piece is not None),
        )

    def _finish_reason(self, reason: int) -> FinishReason:
        if reason in (chat_pb2.FINISH_REASON_INTERRUPTED, chat_pb2.FINISH_REASON_CREDIT_EXHAUSTED):
            raise self._checks.unavailable("it did not get to the end of its answer")
        known = _FINISH_REASONS.get(reason)
        if known is not None:
            return known
        # The answer is whole, only the name of its end is new: STOP promises the app the least.
        _log.warning(
            "backend %s ended an answer of model %s with the unknown finish reason %d; taken for STOP",
            self._backend_id,
            self._model_id,
            reason,
        )
        return FinishReason.STOP

    def _usage(self, usage: usage_pb2.Usage) -> Usage | None:
        """The report; None, and one warning an answer, if it cannot be true or has a class we do not know."""
        tokens = {_TOKEN_CLASSES.get(count.token_class): count.tokens for count in usage.token_counts}
        is_usable = (
            None not in tokens
            and len(tokens) == len(usage.token_counts)
            and all(0 <= count <= _TOKENS_MAX for count in tokens.values())
        )
        if is_usable:
            known = {token_class: count for token_class, count in tokens.items() if token_class is not None}
            return self._checks.cumulative(Usage.of(known))
        self._checks.ignore_usage()
        return None

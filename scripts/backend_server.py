"""Serve a model to Metergate over gRPC: a reference implementation of ``metergate.v1.BackendService``.

Copy it to serve your own model natively: keep ``LlamaBackend`` and put your engine where ``self._llama`` is. Here the
engine is a llama.cpp server (``scripts/llama_server.py``) that is already running at ``--llama-url``.

Prints ``ready HOST:PORT`` on stdout once it serves. Health and reflection are served too. SIGTERM and SIGINT end it.
"""

import argparse
import asyncio
import signal
import sys
from contextlib import aclosing

import aiohttp
import grpc
from google.protobuf.message import Message as ProtoMessage
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.embedding import EmbeddingBackendRequest
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
    TokenIds,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import backend_pb2, backend_pb2_grpc, chat_pb2, embedding_pb2, usage_pb2

SERVICE_NAME = backend_pb2.DESCRIPTOR.services_by_name["BackendService"].full_name
CONNECT_SECONDS_MAX = 5.0  # the engine is near; a connection takes milliseconds
STOP_SECONDS_MAX = 2.0  # how long running answers may take to end after SIGTERM; then they are cancelled
# The gateway pings every 30 s to notice a lost peer; gRPC's default server takes that for abuse before the first token.
PING_MILLISECONDS_MIN = 10_000

ROLES = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}
FINISH_REASONS = {
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: chat_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: chat_pb2.FINISH_REASON_CONTENT_FILTER,
}
TOKEN_CLASSES = {
    TokenClass.PROMPT: usage_pb2.TOKEN_CLASS_PROMPT,
    TokenClass.CACHED_PROMPT: usage_pb2.TOKEN_CLASS_CACHED_PROMPT,
    TokenClass.COMPLETION: usage_pb2.TOKEN_CLASS_COMPLETION,
    TokenClass.REASONING: usage_pb2.TOKEN_CLASS_REASONING,
}

GenerateContext = aio.ServicerContext[backend_pb2.GenerateRequest, backend_pb2.GenerateResponse]
EmbedContext = aio.ServicerContext[backend_pb2.BackendServiceEmbedRequest, backend_pb2.BackendServiceEmbedResponse]
InfoContext = aio.ServicerContext[backend_pb2.GetModelInfoRequest, backend_pb2.GetModelInfoResponse]


class LlamaBackend(backend_pb2_grpc.BackendServiceServicer):
    """Serves one model of a llama.cpp server."""

    def __init__(self, llama: OpenAIBackend, *, model: str, context_tokens: int, dimensions: int) -> None:
        self._llama = llama
        self._model = model
        self._context_tokens = context_tokens
        self._dimensions = dimensions  # 0: it generates only

    async def Generate(  # type: ignore[override]  # noqa: N802 - a coroutine that writes, in place of a generator
        self, request: backend_pb2.GenerateRequest, context: GenerateContext
    ) -> None:
        """Run the model and stream its answer."""
        if request.model != self._model:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model")
        if request.max_completion_tokens < 1 or any(message.role not in ROLES for message in request.messages):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "max_completion_tokens or a role is invalid")
        if has_unknown_fields(request):
            # Of a newer gateway: an answer that leaves something out is not what the app asked and pays for.
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request has fields that are not known here")
        try:
            # When the gateway wants no more, it cancels the call, and gRPC cancels this coroutine at the await where it
            # stands. Leaving the block then closes the connection to the engine, and the engine stops generating.
            async with aclosing(self._llama.generate(to_engine(request))) as events:
                async for event in events:
                    await context.write(to_gateway(event))
        except BackendRejected as refusal:
            # Another backend would refuse this request too.
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        except BackendUnavailable as failure:
            # Another backend may serve it.
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(failure))

    async def Embed(  # noqa: N802 - the name is the service's
        self, request: backend_pb2.BackendServiceEmbedRequest, context: EmbedContext
    ) -> backend_pb2.BackendServiceEmbedResponse:
        """Turn texts into vectors."""
        if not self._dimensions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this model only generates")
        if request.model != self._model:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model")
        if request.dimensions not in (0, self._dimensions) or has_unknown_fields(request):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "dimensions or a field that is not known is invalid")
        asked = EmbeddingBackendRequest(
            model_id=request.model, inputs=tuple(request.inputs), dimensions=self._dimensions, asks_dimensions=False
        )
        try:
            embeddings = await self._llama.embed(asked)
        except BackendRejected as refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        except BackendUnavailable as failure:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(failure))
        return backend_pb2.BackendServiceEmbedResponse(
            embeddings=[embedding_pb2.Embedding(values=vector) for vector in embeddings.vectors],
            usage=None if embeddings.usage_reported is None else to_usage(embeddings.usage_reported),
        )

    async def GetModelInfo(  # noqa: N802 - the name is the service's
        self, request: backend_pb2.GetModelInfoRequest, context: InfoContext
    ) -> backend_pb2.GetModelInfoResponse:
        """Say what the model is."""
        if request.model not in ("", self._model):
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model")
        return backend_pb2.GetModelInfoResponse(
            model=self._model, context_tokens=self._context_tokens, sends_token_ids=False, sends_usage=True
        )


# --- the gateway's request, for the engine --------------------------------------------------------------------------


def to_engine(request: backend_pb2.GenerateRequest) -> BackendRequest:
    """The request in the words of the adapter that talks to llama.cpp."""
    return BackendRequest(
        model_id=request.model,
        prompt=Prompt(
            messages=tuple(to_message(message) for message in request.messages),
            tools=tuple(
                Tool(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters_json_schema)
                for tool in request.tools
            ),
        ),
        sampling=to_sampling(request.sampling),
        response_format=to_response_format(request.response_format),
        tool_choice=to_tool_choice(request.tool_choice),
        max_completion_tokens=request.max_completion_tokens,
    )


def has_unknown_fields(request: ProtoMessage) -> bool:
    """Whether it, or a message within it, has a field of a newer version of the protos."""
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    return known.ByteSize() != request.ByteSize()


def to_message(message: chat_pb2.Message) -> Message:
    """One turn of the conversation."""
    return Message(
        role=ROLES[message.role],
        parts=tuple(part.text for part in message.content_parts),
        tool_calls=tuple(
            ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments)
            for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
    )


def to_sampling(sampling: chat_pb2.Sampling) -> Sampling:
    """How tokens are chosen; a field that is not set is left to the engine."""
    return Sampling(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        stop=tuple(sampling.stop),
        seed=sampling.seed if sampling.HasField("seed") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
    )


def to_tool_choice(choice: chat_pb2.ToolChoice) -> ToolChoice:
    """Whether the model calls tools."""
    if choice.function:
        return ToolChoice(kind=ToolChoiceKind.FUNCTION, function=choice.function)
    is_required = choice.mode == chat_pb2.TOOL_CHOICE_MODE_REQUIRED
    return ToolChoice(kind=ToolChoiceKind.REQUIRED if is_required else ToolChoiceKind.AUTO)


def to_response_format(response_format: chat_pb2.ResponseFormat) -> ResponseFormat:
    """The form that the answer must have."""
    match response_format.WhichOneof("format"):
        case "json_object":
            return ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT)
        case "json_schema":
            asked = response_format.json_schema
            return ResponseFormat(kind=ResponseFormatKind.JSON_SCHEMA, schema_name=asked.name, json_schema=asked.schema)
        case _:
            return ResponseFormat()


# --- the engine's answer, for the gateway ---------------------------------------------------------------------------


def to_gateway(event: BackendEvent) -> backend_pb2.GenerateResponse:
    """One message of the answer."""
    if isinstance(event, Delta):
        return backend_pb2.GenerateResponse(
            delta=chat_pb2.Delta(
                content=event.content,
                reasoning_content=event.reasoning_content,
                tool_calls=[
                    chat_pb2.ToolCallDelta(
                        index=call.index, tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments
                    )
                    for call in event.tool_calls
                ],
            )
        )
    if isinstance(event, Finish):
        return backend_pb2.GenerateResponse(finish_reason=FINISH_REASONS[event.reason])
    if isinstance(event, TokenIds):
        raise TypeError("an OpenAI engine sends texts")
    return backend_pb2.GenerateResponse(usage=to_usage(event.usage))


def to_usage(usage: Usage) -> usage_pb2.Usage:
    """Tokens by class."""
    return usage_pb2.Usage(
        token_counts=[
            usage_pb2.TokenCount(token_class=TOKEN_CLASSES[token_class], tokens=tokens) for token_class, tokens in usage
        ]
    )


# --- the process ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-url", required=True, help="where the llama.cpp server is: http://127.0.0.1:8080")
    parser.add_argument(
        "--model", default="smollm2-135m", help="the model's name, here and there (default %(default)s)"
    )
    parser.add_argument(
        "--dimensions", type=int, default=0, help="numbers of a vector, if the llama.cpp server serves vectors"
    )
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 picks a free one (default)")
    return parser.parse_args()


async def context_tokens(llama_url: str) -> int:
    """How many tokens one request to the llama.cpp server may have, prompt and answer together."""
    timeout = aiohttp.ClientTimeout(total=CONNECT_SECONDS_MAX)
    async with (
        aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
        session.get(f"{llama_url}/props") as response,
    ):
        properties = await response.json()
        return int(properties["default_generation_settings"]["n_ctx"])


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    llama_url = options.llama_url.rstrip("/")
    tokens = await context_tokens(llama_url)
    llama = OpenAIBackend(
        OpenAIBackendOptions(
            backend_id="llama.cpp",
            url=f"{llama_url}/v1",
            model_names={options.model: options.model},
            connect_timeout_seconds=CONNECT_SECONDS_MAX,
        )
    )
    server = aio.server(options=(("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MILLISECONDS_MIN),))
    servicer = LlamaBackend(llama, model=options.model, context_tokens=tokens, dimensions=options.dimensions)
    backend_pb2_grpc.add_BackendServiceServicer_to_server(servicer, server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    for service in ("", SERVICE_NAME):
        await healths.set(service, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(options.listen)
    await server.start()
    print(f"ready {options.listen.rpartition(':')[0]}:{port}", flush=True)
    await ended.wait()
    await healths.enter_graceful_shutdown()
    await server.stop(STOP_SECONDS_MAX)
    await llama.close()


def main() -> None:
    """Serve; exit 1 with one line if that cannot begin."""
    options = arguments()
    try:
        asyncio.run(serve(options))
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        sys.exit(f"backend_server: {options.llama_url} or {options.listen} cannot be used: {error}")


if __name__ == "__main__":
    main()

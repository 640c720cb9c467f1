"""Both adapters' embeddings: what is asked, and that no vector which is not as it was asked gets through."""

import asyncio
import base64
import json
import struct
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import either_http
import grpc
import pytest
from either_http import scripted_server
from grpc import aio
from scripted_backend import HANG, RESET, ScriptedServer, Step, head
from scripted_http2 import ScriptedHttp2Server

from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import backend_pb2, backend_pb2_grpc, embedding_pb2, usage_pb2

SECRET = "the-secret-input"
SOON_SECONDS = 5.0
VECTORS = ([1.0, 0.5, -2.0], [0.0, 0.25, 4.0])
EXPECTED = tuple(array("f", vector) for vector in VECTORS)
JSON = "application/json"


def asked(*inputs: str, **changes: Any) -> EmbeddingBackendRequest:
    values: dict[str, Any] = {"model_id": "embed", "dimensions": 3, "asks_dimensions": False}
    return EmbeddingBackendRequest(inputs=inputs or (SECRET, "b"), **(values | changes))


def in_base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def answer(*embeddings: Any, indexes: Sequence[int] | None = None, **fields: Any) -> bytes:
    data = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in zip(indexes or range(len(embeddings)), embeddings, strict=True)
    ]
    return json.dumps({"object": "list", "model": "m", "data": data} | fields).encode()


@asynccontextmanager
async def openai(
    *script: Step, **options: Any
) -> AsyncIterator[tuple[ScriptedServer | ScriptedHttp2Server, OpenAIBackend]]:
    async with scripted_server(*script) as server:
        values: dict[str, Any] = {"model_names": {"embed": "m"}, "connect_timeout_seconds": 2.0}
        values["http_version"] = either_http.http_version
        backend = OpenAIBackend(OpenAIBackendOptions(backend_id="b1", url=server.url, **(values | options)))
        try:
            yield server, backend
        finally:
            await backend.close()


async def embed(backend: OpenAIBackend | GrpcBackend, request: EmbeddingBackendRequest | None = None) -> Embeddings:
    async with asyncio.timeout(SOON_SECONDS):
        return await backend.embed(request or asked())


async def openai_failure(*script: Step) -> BackendUnavailable | BackendRejected:
    async with openai(*script) as (_, backend):
        with pytest.raises((BackendUnavailable, BackendRejected)) as caught:
            await embed(backend)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert isinstance(caught.value, BackendUnavailable | BackendRejected)
    return caught.value


# --- OpenAI's protocol ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("http_version")
@pytest.mark.parametrize("encode", [list, in_base64], ids=["float", "base64"])
async def test_vectors_come_in_the_order_of_the_inputs_in_either_encoding(encode: Callable[[list[float]], Any]) -> None:
    body = answer(encode(VECTORS[1]), encode(VECTORS[0]), indexes=[1, 0], usage={"prompt_tokens": 9, "total_tokens": 9})
    async with openai(head(JSON), body) as (server, backend):
        embeddings = await embed(backend)
    assert embeddings == Embeddings(vectors=EXPECTED, usage_reported=Usage.of({TokenClass.PROMPT: 9}))
    assert server.received[0].head.startswith("POST /v1/embeddings ")
    assert json.loads(server.received[0].body) == {"model": "m", "input": [SECRET, "b"], "encoding_format": "base64"}


@pytest.mark.usefixtures("http_version")
async def test_dimensions_are_asked_for_only_if_the_app_chose_them() -> None:
    async with openai(head(JSON), answer(*VECTORS), vector_encoding="float") as (server, backend):
        await embed(backend, asked(asks_dimensions=True))
    assert json.loads(server.received[0].body) == {
        "model": "m",
        "input": [SECRET, "b"],
        "encoding_format": "float",
        "dimensions": 3,
    }


@pytest.mark.usefixtures("http_version")
@pytest.mark.parametrize(
    ("usage", "reported"),
    [
        ({"prompt_tokens": 0}, {}),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, {"PROMPT": 5, "CACHED_PROMPT": 4}),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": "9"}, None),
        ({"total_tokens": 9}, None),
        (None, None),
    ],
)
async def test_a_report_that_cannot_be_true_is_none_and_a_zero_is_one(usage: Any, reported: Any) -> None:
    async with openai(head(JSON), answer(*VECTORS, usage=usage)) as (_, backend):
        embeddings = await embed(backend)
    expected = None if reported is None else Usage.of({TokenClass(kind): count for kind, count in reported.items()})
    assert embeddings.usage_reported == expected


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (answer(VECTORS[0]), "it sent 1 vectors for 2 inputs"),
        (answer(), "it sent 0 vectors for 2 inputs"),
        (answer(*VECTORS, VECTORS[0]), "it sent a vector of an input that was not asked"),
        (answer(*VECTORS, indexes=[0, -1]), "it sent a vector of an input that was not asked"),
        (answer(*VECTORS, indexes=[1, 1]), "it sent two vectors of one input"),
        (answer(VECTORS[0], [1.0, 2.0]), "it sent a vector of 2 numbers, not of 3"),
        (answer(VECTORS[0], []), "it sent a vector of 0 numbers, not of 3"),
        (answer(VECTORS[0], [1.0, 2.0, 1e300]), "it sent a vector with a number that is not finite"),
        (answer(VECTORS[0], in_base64([1.0, 2.0, float("nan")])), "it sent a vector with a number that is not finite"),
        (answer(VECTORS[0], in_base64([1.0, 2.0, float("inf")])), "it sent a vector with a number that is not finite"),
        (answer(VECTORS[0], "AAAA!"), "it sent a vector that is no base64 of single-precision numbers"),
        (answer(VECTORS[0], "AAAAAAA="), "it sent a vector that is no base64 of single-precision numbers"),
        (answer(VECTORS[0], [1.0, 2.0, None]), "it sent something else than embeddings"),
        (b'{"data": [{"embedding": [1.0, NaN, 2.0], "index": 0}]}', "it sent something else than embeddings"),
        (b'{"error": {"message": "' + SECRET.encode() + b'"}}', "it sent something else than embeddings"),
        (b"\xff\xfe", "it sent something else than embeddings"),
        (b"[" * 100_000, "it sent an answer of more than"),
        (b"[" * 60_000, "it sent something else than embeddings"),
    ],
)
async def test_vectors_that_are_not_as_asked_are_an_unavailable_backend(body: bytes, problem: str) -> None:
    error = await openai_failure(head(JSON), body)
    assert isinstance(error, BackendUnavailable)
    assert error.problem.startswith(problem)


async def test_an_answer_without_end_is_given_up() -> None:
    error = await openai_failure(head(JSON), lambda: b" " * 4096)
    assert "more than" in error.problem


@pytest.mark.parametrize(
    ("script", "kind", "problem"),
    [
        ((head(JSON, "400 Bad Request"), b'{"error": {"type": "invalid_request_error"}}'), BackendRejected, "HTTP 400"),
        ((head(JSON, "500 Oops"), b"{}"), BackendUnavailable, "HTTP 500"),
        ((head("text/html"), b"<html>"), BackendUnavailable, "it sent no application/json"),
        ((RESET,), BackendUnavailable, "it"),
    ],
)
async def test_failures_are_those_of_a_chat(script: tuple[Step, ...], kind: type[Exception], problem: str) -> None:
    error = await openai_failure(*script)
    assert isinstance(error, kind)
    assert error.problem.startswith(problem)


@pytest.mark.usefixtures("http_version")
async def test_cancelling_closes_the_connection() -> None:
    async with openai(HANG) as (server, backend):
        call = asyncio.create_task(backend.embed(asked()))
        await asyncio.wait_for(server.is_reached.wait(), SOON_SECONDS)
        call.cancel()
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


@pytest.mark.usefixtures("http_version")
async def test_large_answers_are_read_off_the_loop_and_alike() -> None:
    vector = [0.5] * 20_000
    async with openai(head(JSON), answer(in_base64(vector))) as (_, backend):
        embeddings = await embed(backend, asked("a", dimensions=20_000))
    assert embeddings.vectors == (array("f", vector),)


# --- BackendService -------------------------------------------------------------------------------------------------

Context = aio.ServicerContext[Any, Any]
Response = backend_pb2.BackendServiceEmbedResponse


class Servicer(backend_pb2_grpc.BackendServiceServicer):
    """Answers every Embed with one response or status."""

    def __init__(self, response: Response | grpc.StatusCode) -> None:
        self.response = response
        self.requests: list[backend_pb2.BackendServiceEmbedRequest] = []

    async def Embed(self, request: backend_pb2.BackendServiceEmbedRequest, context: Context) -> Response:  # noqa: N802
        self.requests.append(request)
        if isinstance(self.response, grpc.StatusCode):
            await context.abort(self.response, f"bad: {SECRET}")
        assert isinstance(self.response, Response)
        return self.response

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: backend_pb2.GenerateRequest, context: Context
    ) -> None:
        raise NotImplementedError

    async def GetModelInfo(  # noqa: N802
        self, request: backend_pb2.GetModelInfoRequest, context: Context
    ) -> backend_pb2.GetModelInfoResponse:
        raise NotImplementedError


@asynccontextmanager
async def native(response: Response | grpc.StatusCode) -> AsyncIterator[tuple[Servicer, GrpcBackend]]:
    servicer, server = Servicer(response), aio.server()
    backend_pb2_grpc.add_BackendServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = GrpcBackendOptions(
        backend_id="b1",
        address=f"127.0.0.1:{port}",
        model_names={"embed": "m"},
        connect_timeout_seconds=2.0,
        embeds=True,
    )
    backend = GrpcBackend(options)
    try:
        yield servicer, backend
    finally:
        await backend.close()
        await server.stop(None)


def response(*vectors: Sequence[float], usage: usage_pb2.Usage | None = None) -> Response:
    return Response(embeddings=[embedding_pb2.Embedding(values=vector) for vector in vectors], usage=usage)


def report(**tokens: int) -> usage_pb2.Usage:
    counts = [
        usage_pb2.TokenCount(token_class=usage_pb2.TokenClass.Value(f"TOKEN_CLASS_{kind}"), tokens=count)
        for kind, count in tokens.items()
    ]
    return usage_pb2.Usage(token_counts=counts)


@pytest.mark.parametrize(("asks", "sent"), [(False, 0), (True, 3)])
async def test_a_native_backends_vectors_are_taken_in_their_order(asks: bool, sent: int) -> None:
    async with native(response(*VECTORS, usage=report(PROMPT=9))) as (servicer, backend):
        embeddings = await embed(backend, asked(asks_dimensions=asks))
    assert embeddings == Embeddings(vectors=EXPECTED, usage_reported=Usage.of({TokenClass.PROMPT: 9}))
    [request] = servicer.requests
    assert (request.model, list(request.inputs), request.dimensions) == ("m", [SECRET, "b"], sent)


async def test_a_native_answer_of_a_million_numbers_arrives() -> None:
    async with native(response(*[[0.5] * 1_000] * 1_000)) as (_, backend):
        embeddings = await embed(backend, asked(*["a"] * 1_000, dimensions=1_000))
    assert embeddings.numbers() == 1_000_000


@pytest.mark.parametrize(
    "usage", [report(COMPLETION=1), report(PROMPT=-1), report(PROMPT=2**31), report(UNSPECIFIED=1), None]
)
async def test_a_native_report_that_cannot_be_true_is_none(usage: usage_pb2.Usage | None) -> None:
    async with native(response(*VECTORS, usage=usage)) as (_, backend):
        assert (await embed(backend)).usage_reported is None


@pytest.mark.parametrize(
    "wrong", [(), VECTORS[:1], (*VECTORS, VECTORS[0]), ([1.0], [2.0]), (VECTORS[0], [1.0, float("nan"), 0.0])]
)
async def test_native_vectors_that_are_not_as_asked_are_an_unavailable_backend(wrong: Sequence[list[float]]) -> None:
    async with native(response(*wrong)) as (_, backend):
        with pytest.raises(BackendUnavailable, match="it sent"):
            await embed(backend)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_native_status_is_an_error_and_its_details_are_not_kept(code: grpc.StatusCode) -> None:
    is_rejected = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
    async with native(code) as (_, backend):
        with pytest.raises(BackendRejected if is_rejected else BackendUnavailable) as caught:
            await embed(backend)
    assert caught.value.metadata() == {"model_id": "embed", "problem": f"gRPC status {code.name}"}


@pytest.mark.usefixtures("http_version")
async def test_a_model_that_the_backend_is_not_set_up_for_is_unavailable() -> None:
    async with native(response(*VECTORS)) as (_, backend), openai(HANG) as (_, other):
        for adapter in (backend, other):
            with pytest.raises(BackendUnavailable, match="not set up"):
                await embed(adapter, asked(model_id="another"))

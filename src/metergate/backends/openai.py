"""Backends that speak the OpenAI-compatible HTTP protocol: ``POST {url}/chat/completions`` and ``/embeddings``.

Leaving ``generate`` in any way, a cancellation at any of its awaits included, closes the connection (HTTP/1.1) or
resets the stream (HTTP/2), unless the answer was read to its end: that is what stops the generation on the backend. The
adapter limits the connecting only; how long an answer may take is decided by its reader.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from metergate.backends.http1 import Http1Client
from metergate.backends.http_client import HttpAnswer, HttpClient, HttpFailed, HttpOptions
from metergate.backends.known_models import known
from metergate.backends.openai_answer import AnswerReader
from metergate.backends.openai_embeddings import (
    VectorEncoding,
    answer_bytes_max,
    decode_embeddings,
    encode_embedding_request,
)
from metergate.backends.openai_errors import error_answer_name
from metergate.backends.openai_request import MaxTokensField, encode_request
from metergate.backends.sse import EVENT_BYTES_MAX
from metergate.backends.vector_checks import IN_LOOP_NUMBERS_MAX
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import BackendEvent, BackendRequest

# A whole answer that is not streamed is as large as one event of a stream can be.
_WHOLE_ANSWER_BYTES_MAX = EVENT_BYTES_MAX

# Enough for the error objects of every server we know; HTML pages may be cut.
_ERROR_BYTES_MAX = 4096

# Of an answer that has said all it had to say, this long is waited for its end: a connection that ended is used again.
# Well-behaved servers send the end with or right after the last event.
_END_SECONDS = 0.1

# An error's status is known; its name is worth a short wait, not a failover's delay.
_ERROR_BODY_SECONDS = 1.0

# A look at a backend that is busy does not wait for it.
_LOOK_SECONDS = 0.5

# The request as such was refused; another backend would refuse it too.
_REJECTED_STATUSES = frozenset({400, 413, 422})

# It takes no request now, whatever is asked: too many came, or it is loading, draining, down.
_TAKES_NONE_STATUSES = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIBackendOptions:
    """How to reach one OpenAI-compatible backend."""

    backend_id: str
    url: str  # up to and including the version: "http://127.0.0.1:8080/v1"
    model_names: Mapping[str, str]  # the backend's own name of each model, by the model's id in this gateway
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token
    connect_timeout_seconds: float  # > 0; name look-up, TLS and the wait for a free connection included
    stream: bool = True  # False: the whole answer comes at once, for backends that cannot stream
    chunk_usage: bool = False  # ask for usage with every chunk of a stream
    include_usage: bool = True  # ask for usage in streams; False for backends that refuse ``stream_options``
    max_tokens_field: MaxTokensField = "max_tokens"  # newer OpenAI models take only the other
    vector_encoding: VectorEncoding = "base64"  # how embeddings are asked for; both forms are read
    connections_max: int = 1024  # with HTTP/1.1 one carries one answer; more requests wait, then fail over
    ca_pem: str | None = None  # the authorities it must prove itself to over https; None: the public ones
    http_version: Literal["1.1", "2"] = "1.1"  # "2": with prior knowledge over http, with ALPN over https
    health_path: str | None = None  # what a look asks for, from the root of the host; None: the list of models


class OpenAIBackend:
    """One OpenAI-compatible backend. Create it within the event loop that uses it."""

    def __init__(self, options: OpenAIBackendOptions) -> None:
        self._options = options
        url = options.url.rstrip("/")
        self._chat_url, self._embeddings_url = f"{url}/chat/completions", f"{url}/embeddings"
        self._look_url = _look_url(options)
        self._http = _http_client(options)

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        return self._options.backend_id

    async def is_up(self) -> bool:
        """Whether it takes a new connection, and what is asked for, if it answers in time, is no failure of its own.

        One that takes the connection and is slow to answer is busy, not down.
        """
        try:
            status = await self._http.look(self._look_url, seconds=_LOOK_SECONDS)
        except HttpFailed:
            return False
        return status is None or status < 500

    async def close(self) -> None:
        """Close all connections, those in use included."""
        await self._http.close()

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        """Run the request: deltas, one finish reason after them, and usage if the backend reports any.

        BackendRejected if the request as such was refused (400, 413, 422); BackendUnavailable for all else.
        """
        reader = AnswerReader(backend_id=self.backend_id, model_id=request.model_id)
        body = encode_request(
            request,
            model=known(self._options.model_names, request.model_id),
            stream=self._options.stream,
            include_usage=self._options.include_usage,
            max_tokens_field=self._options.max_tokens_field,
            chunk_usage=self._options.chunk_usage,
        )
        try:
            answer = await self._http.post(self._chat_url, body, request.trace_context, is_repeat=request.is_repeat)
            try:
                content_type = "text/event-stream" if self._options.stream else "application/json"
                await self._check(answer, request.model_id, content_type)
                if self._options.stream:
                    while not reader.is_done and (chunk := await answer.read()):
                        for event in reader.feed(chunk):
                            yield event
                    reader.end()
                    await self._read_to_end(answer)
                else:
                    whole = await self._read_whole(answer, request.model_id, _WHOLE_ANSWER_BYTES_MAX)
                    for event in reader.read_whole(whole):
                        yield event
            finally:
                answer.close()
        except HttpFailed as exc:
            raise _unavailable(request.model_id, exc) from exc.__cause__

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        """Return a vector for each input; the errors are those of ``generate``."""
        body = encode_embedding_request(
            request, model=known(self._options.model_names, request.model_id), encoding=self._options.vector_encoding
        )
        try:
            answer = await self._http.post(
                self._embeddings_url, body, request.trace_context, is_repeat=request.is_repeat
            )
            try:
                await self._check(answer, request.model_id, "application/json")
                whole = await self._read_whole(answer, request.model_id, answer_bytes_max(request))
            finally:
                answer.close()
        except HttpFailed as exc:
            raise _unavailable(request.model_id, exc) from exc.__cause__
        if len(request.inputs) * request.dimensions > IN_LOOP_NUMBERS_MAX:
            return await asyncio.to_thread(decode_embeddings, whole, request)
        return decode_embeddings(whole, request)

    async def _check(self, answer: HttpAnswer, model_id: str, content_type: str) -> None:
        """Raise unless the head of the answer promises what was asked for."""
        if answer.status != 200:
            problem = f"HTTP {answer.status}{await self._error_name(answer)}"
            if answer.status in _REJECTED_STATUSES:
                raise BackendRejected(model_id=model_id, problem=problem)
            takes_none = answer.status in _TAKES_NONE_STATUSES
            raise BackendUnavailable(model_id=model_id, problem=problem, takes_none=takes_none)
        if answer.content_type != content_type:
            problem = f"it sent no {content_type}{await self._error_name(answer)}"
            raise BackendUnavailable(model_id=model_id, problem=problem)

    async def _error_name(self, answer: HttpAnswer) -> str:
        """What the body calls the error, as " (type, code)"; "" if that does not come soon."""
        body = b""
        try:
            async with asyncio.timeout(_ERROR_BODY_SECONDS):
                while len(body) < _ERROR_BYTES_MAX and (chunk := await answer.read()):
                    body += chunk
        except (HttpFailed, TimeoutError):
            return ""  # the status says enough
        return error_answer_name(body[:_ERROR_BYTES_MAX])

    async def _read_whole(self, answer: HttpAnswer, model_id: str, bytes_max: int) -> bytes:
        body = bytearray()
        while chunk := await answer.read():
            body += chunk
            if len(body) > bytes_max:
                problem = f"it sent an answer of more than {bytes_max} bytes"
                raise BackendUnavailable(model_id=model_id, problem=problem)
        return bytes(body)

    async def _read_to_end(self, answer: HttpAnswer) -> None:
        """Give the answer a moment to end, so that its connection can be used again."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                while await answer.read():
                    pass
        except (HttpFailed, TimeoutError):
            return  # the answer was complete; only the connection is lost


def _http_client(options: OpenAIBackendOptions) -> HttpClient:
    # A compressed answer could grow without bound; it is not asked for, and not unpacked if it comes.
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    if options.api_key is not None:
        headers["Authorization"] = f"Bearer {options.api_key}"
    http_options = HttpOptions(
        origin=options.url,
        headers=headers,
        connect_timeout_seconds=options.connect_timeout_seconds,
        connections_max=options.connections_max,
        ca_pem=options.ca_pem,
    )
    if options.http_version == "1.1":
        return Http1Client(http_options)
    from metergate.backends.http2 import Http2Client  # its library is only there where it is used

    return Http2Client(http_options)


def _look_url(options: OpenAIBackendOptions) -> str:
    if options.health_path is None:
        return options.url.rstrip("/") + "/models"
    scheme, _, rest = options.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}{options.health_path}"


def _unavailable(model_id: str, failure: HttpFailed) -> BackendUnavailable:
    return BackendUnavailable(
        model_id=model_id,
        problem=failure.problem,
        was_reached=failure.was_reached,
        connection_was_kept=failure.connection_was_kept,
    )

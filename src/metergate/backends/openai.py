"""Backends that speak the OpenAI-compatible HTTP protocol: ``POST {url}/chat/completions`` and ``/embeddings``.

Leaving ``generate`` in any way, a cancellation at any of its awaits included, closes the HTTP connection unless the
answer was read to its end: that is what stops the generation on the backend. The adapter limits the connecting only;
how long an answer may take is decided by its reader.
"""

import asyncio
import errno
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from ssl import create_default_context
from typing import NoReturn

import aiohttp

from metergate.backends.kept_connections import KeepingConnector, ended_kept_connection
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

# Read ahead of the consumer: about 60 deltas of 250 bytes. aiohttp stops reading the socket at twice this; what the
# last read of the socket brought (up to 256 KiB) comes on top.
_READ_AHEAD_BYTES = 16 * 1024

# Below the 5 s after which uvicorn (vLLM, SGLang) and llama.cpp close an idle connection: the gateway goes first, so
# that no request is lost on a connection that the backend is closing at that moment.
_IDLE_CONNECTION_SECONDS = 4.0

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

# What went wrong, for people, by the first class that fits. No text of an error is passed on: aiohttp quotes the peer.
_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "no connection within the time limit"),
    (aiohttp.ClientConnectorDNSError, "its host name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "its certificate does not prove that it is the host of its URL"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (aiohttp.ClientConnectorError, "it cannot be connected to"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "its answer broke off"),
    (aiohttp.ClientConnectionError, "the connection broke"),
    (aiohttp.ClientResponseError, "it sent something else than HTTP"),
    (aiohttp.InvalidURL, "its URL is invalid"),
)
_FAILURES = (aiohttp.ClientError, OSError)

# The connection was not made, so nothing was sent on it. (A connect timeout is a wait for a free connection, too.)
_UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


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
    connections_max: int = 1024  # a connection carries one answer; more requests wait, then fail over
    ca_pem: str | None = None  # the authorities it must prove itself to over https; None: the public ones
    health_path: str | None = None  # what a look asks for, from the root of the host; None: the list of models


class OpenAIBackend:
    """One OpenAI-compatible backend. Create it within the event loop that uses it."""

    def __init__(self, options: OpenAIBackendOptions) -> None:
        self._options = options
        url = options.url.rstrip("/")
        self._chat_url, self._embeddings_url = f"{url}/chat/completions", f"{url}/embeddings"
        # True: what the system trusts.
        tls = True if options.ca_pem is None else create_default_context(cadata=options.ca_pem)
        limit = options.connections_max
        self._session = _session(options, KeepingConnector(limit=limit, idle_seconds=_IDLE_CONNECTION_SECONDS, tls=tls))
        self._repeats = _session(options, KeepingConnector(limit=limit, idle_seconds=None, tls=tls))
        self._look_url = _look_url(options)
        # Connections of its own, for a look each: those of the answers may all be in use.
        self._looks = _session(
            options, aiohttp.TCPConnector(limit=1, force_close=True, ssl=tls), read_seconds=_LOOK_SECONDS
        )

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        return self._options.backend_id

    async def is_up(self) -> bool:
        """Whether it takes a new connection, and what is asked for, if it answers in time, is no failure of its own.

        One that takes the connection and is slow to answer is busy, not down.
        """
        try:
            async with self._looks.get(self._look_url, allow_redirects=False) as response:
                return response.status < 500
        except aiohttp.SocketTimeoutError:
            return True
        except (*_FAILURES, ValueError):
            return False

    async def close(self) -> None:
        """Close all connections, those in use included."""
        for session in (self._session, self._repeats, self._looks):
            await session.close()

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
        response = await self._post(self._chat_url, body, request)
        try:
            content_type = "text/event-stream" if self._options.stream else "application/json"
            await self._check(response, request.model_id, content_type)
            if self._options.stream:
                while not reader.is_done and (chunk := await self._read(response, request.model_id)):
                    for event in reader.feed(chunk):
                        yield event
                reader.end()
                await self._read_to_end(response)
            else:
                answer = await self._read_whole(response, request.model_id, _WHOLE_ANSWER_BYTES_MAX)
                for event in reader.read_whole(answer):
                    yield event
        finally:
            response.close()

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        """Return a vector for each input; the errors are those of ``generate``."""
        body = encode_embedding_request(
            request, model=known(self._options.model_names, request.model_id), encoding=self._options.vector_encoding
        )
        response = await self._post(self._embeddings_url, body, request)
        try:
            await self._check(response, request.model_id, "application/json")
            answer = await self._read_whole(response, request.model_id, answer_bytes_max(request))
        finally:
            response.close()
        if len(request.inputs) * request.dimensions > IN_LOOP_NUMBERS_MAX:
            return await asyncio.to_thread(decode_embeddings, answer, request)
        return decode_embeddings(answer, request)

    async def _post(
        self, url: str, body: bytes, request: BackendRequest | EmbeddingBackendRequest
    ) -> aiohttp.ClientResponse:
        """Send the request and return the head of the answer."""
        session = self._repeats if request.is_repeat else self._session
        began_seconds = asyncio.get_running_loop().time()
        try:
            # A redirect could carry the key to another host: its status is an error like any other.
            return await session.post(url, data=body, headers=request.trace_context, allow_redirects=False)
        except _FAILURES as exc:
            seconds = asyncio.get_running_loop().time() - began_seconds
            _raise_unavailable(request.model_id, exc, connection_was_kept=ended_kept_connection(exc, seconds))

    async def _check(self, response: aiohttp.ClientResponse, model_id: str, content_type: str) -> None:
        """Raise unless the head of the answer promises what was asked for."""
        if response.status != 200:
            problem = f"HTTP {response.status}{await self._error_name(response)}"
            if response.status in _REJECTED_STATUSES:
                raise BackendRejected(model_id=model_id, problem=problem)
            takes_none = response.status in _TAKES_NONE_STATUSES
            raise BackendUnavailable(model_id=model_id, problem=problem, takes_none=takes_none)
        if response.content_type != content_type:
            problem = f"it sent no {content_type}{await self._error_name(response)}"
            raise BackendUnavailable(model_id=model_id, problem=problem)

    async def _error_name(self, response: aiohttp.ClientResponse) -> str:
        """What the body calls the error, as " (type, code)"; "" if that does not come soon."""
        body = b""
        try:
            async with asyncio.timeout(_ERROR_BODY_SECONDS):
                while len(body) < _ERROR_BYTES_MAX and (
                    chunk := await response.content.read(_ERROR_BYTES_MAX - len(body))
                ):
                    body += chunk
        except _FAILURES:
            return ""  # the status says enough
        return error_answer_name(body)

    async def _read(self, response: aiohttp.ClientResponse, model_id: str) -> bytes:
        """What has come of the body, at least a byte; nothing at its end."""
        try:
            return await response.content.readany()
        except _FAILURES as exc:
            _raise_unavailable(model_id, exc)

    async def _read_whole(self, response: aiohttp.ClientResponse, model_id: str, bytes_max: int) -> bytes:
        body = bytearray()
        while chunk := await self._read(response, model_id):
            body += chunk
            if len(body) > bytes_max:
                problem = f"it sent an answer of more than {bytes_max} bytes"
                raise BackendUnavailable(model_id=model_id, problem=problem)
        return bytes(body)

    async def _read_to_end(self, response: aiohttp.ClientResponse) -> None:
        """Give the answer a moment to end, so that its connection can be used again."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                while await response.content.readany():
                    pass
        except _FAILURES:
            return  # the answer was complete; only the connection is lost


def _session(
    options: OpenAIBackendOptions, connector: aiohttp.TCPConnector, *, read_seconds: float | None = None
) -> aiohttp.ClientSession:
    # A compressed answer could grow without bound; it is not asked for, and not unpacked if it comes.
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    if options.api_key is not None:
        headers["Authorization"] = f"Bearer {options.api_key}"
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_seconds, sock_read=read_seconds),
        read_bufsize=_READ_AHEAD_BYTES,
    )


def _look_url(options: OpenAIBackendOptions) -> str:
    if options.health_path is None:
        return options.url.rstrip("/") + "/models"
    scheme, _, rest = options.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}{options.health_path}"


def _raise_unavailable(model_id: str, failure: Exception, *, connection_was_kept: bool = False) -> NoReturn:
    problem = next((text for kind, text in _PROBLEMS if isinstance(failure, kind)), type(failure).__name__)
    # Numbers of TLS errors are OpenSSL's own.
    if isinstance(failure, OSError) and not isinstance(failure, aiohttp.ClientSSLError):
        name = errno.errorcode.get(failure.errno or 0)
        problem += f" ({name})" if name else ""
    was_reached = not isinstance(failure, _UNREACHED)
    # A cause is printed with its error. aiohttp's errors of the protocol quote the peer, and show the request's headers
    # with the key: only errors of the system are passed on.
    raise BackendUnavailable(
        model_id=model_id, problem=problem, was_reached=was_reached, connection_was_kept=connection_was_kept
    ) from (failure if isinstance(failure, OSError) else None)

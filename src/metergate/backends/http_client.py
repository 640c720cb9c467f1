"""What the OpenAI adapter needs of HTTP, whichever version of it carries the requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ssl import SSLContext, create_default_context
from typing import Protocol, Self

# Either side may close an idle connection. Below the 5 s after which uvicorn (vLLM, SGLang), hypercorn and llama.cpp do
# so: the gateway goes first, so that no request is lost on a connection that the backend is closing at that moment.
IDLE_CONNECTION_SECONDS = 4.0

# The end of a connection that was being closed comes within a round trip. What a backend has had for longer it has
# read: sent anew, it would cost twice.
CROSSING_SECONDS = 1.0


class HttpFailed(Exception):
    """No answer, or not all of it; the message says why, for people, and quotes nothing of the peer.

    Its cause is an error of the system or None: other errors may show the request's headers, with the key.
    """

    def __init__(self, problem: str, *, was_reached: bool = True, connection_was_kept: bool = False) -> None:
        """``was_reached`` and ``connection_was_kept`` are those of BackendUnavailable."""
        super().__init__(problem)
        self.problem = problem
        self.was_reached = was_reached
        self.connection_was_kept = connection_was_kept

    def again(self) -> Self:
        """The same for another request; the cause is not taken along."""
        return type(self)(self.problem, was_reached=self.was_reached, connection_was_kept=self.connection_was_kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How to reach one server."""

    origin: str  # its URL; of which the path says nothing
    headers: Mapping[str, str] = field(repr=False)  # of every request; the key may be among them
    connect_timeout_seconds: float  # > 0; name look-up, TLS and the wait for a free connection included
    connections_max: int
    ca_pem: str | None  # the authorities it must prove itself to over https; None: the public ones

    def tls(self) -> SSLContext:
        """What it must prove over https."""
        return create_default_context(cadata=self.ca_pem)


class HttpAnswer(Protocol):
    """The head of an answer, and its body as it comes. To be closed."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def content_type(self) -> str:
        """In small letters, without parameters; some type if none came."""

    async def read(self) -> bytes:
        """What has come of the body, at least a byte; nothing at its end. HttpFailed if it breaks off."""

    def close(self) -> None:
        """Tell the server that no more is wanted, unless all was read: that is what stops a generation."""


class HttpClient(Protocol):
    """Sends requests to one server. Create it within the event loop that uses it; to be closed."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, is_repeat: bool) -> HttpAnswer:
        """Send the request and return the head of the answer; HttpFailed if there is none.

        ``is_repeat``: a kept connection ended instead of an answer to it; it goes on a new one. Redirects are answers
        like any other: one followed could carry the key to another host.
        """

    async def look(self, url: str, *, seconds: float) -> int | None:
        """The status that a new connection gets; None if there is one and no answer in time. HttpFailed if none."""

    async def close(self) -> None:
        """Close all connections, those in use included."""

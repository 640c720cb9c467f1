"""An OpenAI-compatible backend that plays bytes, the adapter before it, and what it makes of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import either_http
from backend_requests import a_request
from either_http import scripted_server
from scripted_backend import Step

from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish, UsageReport
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

SECRET_PROMPT = "the-secret-prompt"
KEY = "sk-very-secret"
SOON_SECONDS = 5.0  # for what happens within milliseconds on a quiet machine


def request(**changes: Any) -> BackendRequest:
    return a_request(SECRET_PROMPT, **changes)


@asynccontextmanager
async def backend_at(url: str, **changes: Any) -> AsyncIterator[OpenAIBackend]:
    values: dict[str, Any] = {
        "backend_id": "b1",
        "url": url,
        "model_names": {"smol": "smollm2-135m"},
        "api_key": KEY,
        "connect_timeout_seconds": 2.0,
        "http_version": either_http.http_version,
    }
    backend = OpenAIBackend(OpenAIBackendOptions(**(values | changes)))
    try:
        yield backend
    finally:
        await backend.close()


async def collect(backend: OpenAIBackend, asked: BackendRequest | None = None) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [event async for event in backend.generate(asked or request())]


async def events_of(*script: Step, **options: Any) -> list[BackendEvent]:
    async with scripted_server(*script) as server, backend_at(server.url, **options) as backend:
        return await collect(backend)


async def failure_of(*script: Step, **options: Any) -> tuple[list[BackendEvent], BackendUnavailable | BackendRejected]:
    """What came before the error, and the error."""
    events: list[BackendEvent] = []
    failure: BackendUnavailable | BackendRejected | None = None
    async with scripted_server(*script) as server, backend_at(server.url, **options) as backend:
        try:
            async with asyncio.timeout(SOON_SECONDS):
                async for event in backend.generate(request()):
                    events.append(event)  # noqa: PERF401 - what came before the error is kept
        except (BackendUnavailable, BackendRejected) as error:
            failure = error
    assert failure is not None, "it did not fail"
    assert failure.model_id == "smol"
    # A log with a traceback shows no cause that could quote the backend: none at all, or one of the system.
    assert failure.__suppress_context__ or failure.__context__ is None
    assert isinstance(failure.__cause__, OSError | None)
    assert SECRET_PROMPT not in str(failure)
    return events, failure


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return event({"id": "c", "object": "chat.completion.chunk", "choices": choices} | fields)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
HELLO = chunk({"role": "assistant", "content": None}) + chunk({"content": "Hel"}) + chunk({"content": "lo"})
STOP = chunk({}, "stop")
USAGE = chunk(usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})
HELLO_EVENTS = [Delta(content="Hel"), Delta(content="lo"), Finish(reason=FinishReason.STOP)]
USAGE_REPORT = UsageReport(usage=Usage.of({TokenClass.PROMPT: 7, TokenClass.COMPLETION: 2}))
HTML = b"<html><body>Bad Gateway</body></html>"

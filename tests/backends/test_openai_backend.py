"""The OpenAI-compatible adapter against a server that plays bytes."""

import asyncio
import gc
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import either_http
import pytest
from backend_requests import a_request
from either_http import scripted_server
from h2.settings import SettingCodes
from scripted_backend import CLOSE, HANG, RESET, WAIT, Step, chunked, head

from metergate.backends.http1 import Http1Client
from metergate.backends.http2 import Http2Client
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
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
    Tool,
    ToolCall,
    ToolCallDelta,
    UsageReport,
)
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

pytestmark = pytest.mark.usefixtures("http_version")

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


# --- good answers ---------------------------------------------------------------------------------------------------


async def test_a_stream_is_deltas_a_finish_and_usage() -> None:
    assert await events_of(head(), HELLO, STOP, USAGE, DONE) == [*HELLO_EVENTS, USAGE_REPORT]


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda stream: stream.replace(b"\n", b"\r\n"),
        lambda stream: stream.replace(b"\n", b"\r"),
        lambda stream: b"\xef\xbb\xbf" + stream,
        lambda stream: b": ping\n\ndata:\n\n" + stream.replace(b"\n\n", b"\n\n: ping\n\n"),
        lambda stream: stream.replace(b', "object"', b',\ndata: "object"'),
    ],
    ids=["CRLF", "CR", "byte order mark", "keep-alives", "several data lines"],
)
async def test_every_form_of_an_event_stream_is_read(rewrite: Callable[[bytes], bytes]) -> None:
    assert await events_of(head(), rewrite(HELLO + STOP + USAGE + DONE)) == [*HELLO_EVENTS, USAGE_REPORT]


async def test_a_stream_without_usage_has_no_report() -> None:
    assert await events_of(head(), HELLO, chunk({}, "stop", usage=None), DONE) == HELLO_EVENTS


async def test_a_stream_that_ends_after_its_finish_reason_needs_no_done() -> None:
    assert await events_of(head(), HELLO, STOP) == HELLO_EVENTS


async def test_an_explicit_zero_is_a_report() -> None:
    zero = chunk({}, "stop", usage={"prompt_tokens": 0, "completion_tokens": 0})
    assert await events_of(head(), HELLO, zero, DONE) == [*HELLO_EVENTS, UsageReport(usage=Usage())]


async def test_cumulative_reports_come_in_order() -> None:
    first = chunk({"content": "Hel"}, usage={"prompt_tokens": 7, "completion_tokens": 1})
    events = await events_of(head(), first, chunk({"content": "lo"}), STOP, USAGE, DONE)
    assert [e for e in events if isinstance(e, UsageReport)][-1] == USAGE_REPORT


async def test_usage_classes_are_disjoint() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    expected = {
        TokenClass.PROMPT: 4,
        TokenClass.CACHED_PROMPT: 6,
        TokenClass.COMPLETION: 3,
        TokenClass.REASONING: 5,
    }
    assert (await events_of(head(), HELLO, STOP, chunk(usage=usage)))[-1] == UsageReport(usage=Usage.of(expected))


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}},
        {"prompt_tokens": 7, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}},
        {"prompt_tokens": 7},
        {"prompt_tokens": 7.5, "completion_tokens": 2},
        {"prompt_tokens": 2**40, "completion_tokens": 2},
        {"prompt_tokens": "seven", "completion_tokens": 2},
        "much",
    ],
)
async def test_usage_that_cannot_be_true_is_ignored_with_one_warning(
    usage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await events_of(head(), HELLO, STOP, chunk(usage=usage), chunk(usage=usage), DONE) == HELLO_EVENTS
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_reasoning_refusal_and_content_are_told_apart() -> None:
    stream = (
        chunk({"reasoning_content": "Hm. "})
        + chunk({"reasoning": "Aha."})
        + chunk({"reasoning": "both", "reasoning_content": "both"})
        + chunk({"content": "Yes", "reasoning_content": ""})
        + chunk({"refusal": "I cannot."})
    )
    assert await events_of(head(), stream, STOP) == [
        Delta(reasoning_content="Hm. "),
        Delta(reasoning_content="Aha."),
        Delta(reasoning_content="both"),
        Delta(content="Yes"),
        Delta(content="I cannot."),
        Finish(reason=FinishReason.STOP),
    ]


async def test_tool_calls_keep_their_index() -> None:
    first = {"index": 1, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 1, "function": {"arguments": '{"a":1}'}}
    stream = chunk({"tool_calls": [first]}) + chunk({"tool_calls": [more]}) + chunk({}, "tool_calls")
    assert await events_of(head(), stream, DONE) == [
        Delta(tool_calls=(ToolCallDelta(index=1, tool_call_id="call_1", name="f"),)),
        Delta(tool_calls=(ToolCallDelta(index=1, arguments='{"a":1}'),)),
        Finish(reason=FinishReason.TOOL_CALLS),
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
    ],
)
async def test_finish_reasons_are_mapped(word: str, reason: FinishReason, caplog: pytest.LogCaptureFixture) -> None:
    assert await events_of(head(), HELLO, chunk({}, word)) == [*HELLO_EVENTS[:2], Finish(reason=reason)]
    assert not caplog.records


async def test_an_unknown_finish_reason_is_stop_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert await events_of(head(), HELLO, chunk({}, "eos_token")) == HELLO_EVENTS
    assert "eos_token" in caplog.text


async def test_a_repeated_finish_reason_counts_once() -> None:
    assert await events_of(head(), HELLO, STOP, chunk({"content": ""}, "stop")) == HELLO_EVENTS


async def test_an_answer_that_is_not_streamed_is_one_delta_a_finish_and_usage() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "tool_calls": [call]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    async with (
        scripted_server(head("application/json; charset=utf-8"), json.dumps(body).encode()) as server,
        backend_at(server.url, stream=False) as backend,
    ):
        assert await collect(backend) == [
            Delta(
                content="Hello",
                tool_calls=(ToolCallDelta(index=0, tool_call_id="call_1", name="f", arguments="{}"),),
            ),
            Finish(reason=FinishReason.STOP),
            USAGE_REPORT,
        ]
        sent = json.loads(server.received[0].body)
    assert sent["stream"] is False
    assert "stream_options" not in sent


async def test_a_connection_is_used_again() -> None:
    async with (
        scripted_server(chunked(HELLO, STOP, USAGE, DONE)) as server,
        backend_at(server.url) as backend,
    ):
        for _ in range(3):
            assert await collect(backend) == [*HELLO_EVENTS, USAGE_REPORT]
        assert (server.connections, len(server.received)) == (1, 3)


async def test_an_answer_ends_though_its_connection_stays_open() -> None:
    async with scripted_server(head(), HELLO + STOP + DONE, HANG) as server, backend_at(server.url) as backend:
        assert await collect(backend) == HELLO_EVENTS
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


# --- the request ----------------------------------------------------------------------------------------------------


async def test_a_request_is_exactly_what_the_gateway_understood() -> None:
    asked = request(
        prompt=Prompt(
            messages=(
                Message(role=Role.SYSTEM, parts=("Be ", "brief.")),
                Message(role=Role.USER, parts=("Weather?",)),
                Message(
                    role=Role.ASSISTANT,
                    tool_calls=(ToolCall(tool_call_id="c1", name="weather", arguments='{"city":"北京"}'),),
                ),
                Message(role=Role.TOOL, parts=("sunny",), tool_call_id="c1"),
            ),
            tools=(
                Tool(name="weather", description="Tells it.", parameters_json_schema='{"type":"object"}'),
                Tool(name="now"),
            ),
        ),
        sampling=Sampling(
            temperature=0.0, top_p=0.5, stop=("\n",), seed=0, presence_penalty=-1.0, frequency_penalty=1.5
        ),
        response_format=ResponseFormat(
            kind=ResponseFormatKind.JSON_SCHEMA, schema_name="w", json_schema='{"type":"array"}'
        ),
        trace_context={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    )
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url + "/") as backend:
        await collect(backend, asked)
        received = server.received[0]
    first, *headers = received.head.splitlines()
    assert first == f"POST /v1/chat/completions HTTP/{either_http.http_version}"
    sent = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
    assert sent["authorization"] == f"Bearer {KEY}"
    assert sent["traceparent"] == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert sent["content-type"] == "application/json"
    assert sent["accept-encoding"] == "identity"
    assert sent["content-length"] == str(len(received.body))
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"北京"}'}}
    assert json.loads(received.body) == {
        "model": "smollm2-135m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
            },
            {"type": "function", "function": {"name": "now"}},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "w", "schema": {"type": "array"}, "strict": True},
        },
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["\n"],
        "seed": 0,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.5,
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_plain_request_leaves_everything_else_to_the_backend() -> None:
    options: dict[str, Any] = {"api_key": None, "include_usage": False, "max_tokens_field": "max_completion_tokens"}
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url, **options) as backend:
        await collect(backend)
        received = server.received[0]
    assert "authorization" not in received.head.lower()
    assert json.loads(received.body) == {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": SECRET_PROMPT}],
        "max_completion_tokens": 16,
        "stream": True,
    }


async def test_usage_with_every_chunk_is_asked_for_where_the_backend_is_set_up_so() -> None:
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url, chunk_usage=True) as backend:
        await collect(backend)
        sent = json.loads(server.received[0].body)
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_a_json_object_can_be_asked_for() -> None:
    asked = request(response_format=ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT))
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url) as backend:
        await collect(backend, asked)
        assert json.loads(server.received[0].body)["response_format"] == {"type": "json_object"}


async def test_a_schema_cannot_add_fields_to_the_request() -> None:
    asked = request(prompt=Prompt(messages=(), tools=(Tool(name="f", parameters_json_schema='{}}}],"n":9,"x":[{'),)))
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url) as backend:
        with pytest.raises(BackendRejected, match="not JSON"):
            await collect(backend, asked)
        assert server.received == []


async def test_a_model_the_backend_was_not_set_up_for_is_not_sent() -> None:
    async with scripted_server(head(), HELLO, STOP) as server, backend_at(server.url) as backend:
        with pytest.raises(BackendUnavailable, match="not set up"):
            await collect(backend, request(model_id="other"))
        assert server.received == []


def test_the_key_is_not_shown_with_the_options() -> None:
    options = OpenAIBackendOptions(
        backend_id="b", url="http://x", model_names={}, api_key=KEY, connect_timeout_seconds=1
    )
    assert KEY not in repr(options)


# --- bad answers ----------------------------------------------------------------------------------------------------

ECHO = {"error": {"message": f"bad: {SECRET_PROMPT}", "type": "invalid_request_error", "code": 400}}
HTML = b"<html><body>Bad Gateway</body></html>"


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Payload Too Large", "422 Unprocessable Entity"])
async def test_a_refused_request_is_rejected_and_the_message_is_not_kept(status: str) -> None:
    _, error = await failure_of(head("application/json", status), json.dumps(ECHO).encode())
    assert isinstance(error, BackendRejected)
    assert error.problem == f"HTTP {status[:3]} (invalid_request_error, 400)"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([head("application/json", "429 Too Many"), b'{"error":{"code":"rate_limit"}}'], "HTTP 429 (rate_limit)"),
        ([head("application/json", "404 Not Found"), b'{"error":"no such model"}'], "HTTP 404"),
        ([head("application/json", "401 Unauthorized"), b"{}"], "HTTP 401"),
        ([head("text/html", "502 Bad Gateway"), HTML], "HTTP 502"),
        ([head("text/html", "500 Oops"), HTML * 1000], "HTTP 500"),
        ([head("text/html", "503 Busy", extra="Content-Length: 9\r\n"), b"x", RESET], "HTTP 503"),
        ([head("text/html", "302 Found", extra="Location: http://127.0.0.1:1/\r\n")], "HTTP 302"),
        (
            [head("application/json", "500 Oops"), json.dumps({"error": {"type": SECRET_PROMPT * 3}}).encode()],
            "HTTP 500",
        ),
        ([head("text/html"), HTML], "it sent no text/event-stream"),
        ([head("application/json"), b'{"error":{"type":"overloaded"}}'], "it sent no text/event-stream (overloaded)"),
        ([head(), HTML], "its answer broke off before a finish reason"),
        ([head()], "its answer broke off before a finish reason"),
        ([head(), DONE], "its answer broke off before a finish reason"),
        ([head(extra="Content-Encoding: gzip\r\n"), gzip.compress(HELLO + STOP + DONE)], "its answer broke off before"),
        ([head(), event({"error": {"message": SECRET_PROMPT, "code": 500}})], "it reported an error (500)"),
        ([head(), event({"error": SECRET_PROMPT})], "it reported an error"),
        ([head(), event("text")], "it sent something else than a chat completion"),
        ([head(), b"data: {\n\n"], "it sent something else than a chat completion"),
        ([head(), b'data: {"a":' + b"[" * 100_000 + b"\n\n"], "it sent something else than a chat completion"),
        ([head(), event({"choices": [{"delta": {"content": 7}}]})], "it sent something else than a chat completion"),
        ([head(), b"data: \xff\xfe\n\n"], "it sent an event that is not UTF-8"),
        ([head(), b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'], "it sent something else than a chat"),
        ([head(), event({"choices": [{"index": 1, "delta": {"content": "x"}}]})], "it sent more than the one choice"),
        ([head(), event({"choices": [{"index": 0}, {"index": 0}]})], "it sent more than the one choice"),
        ([head(), chunk({"tool_calls": [{"function": {"name": "f"}}]})], "it sent a piece of a tool call without"),
        ([head(), chunk({"tool_calls": [{"index": -1}]})], "it sent a piece of a tool call with an index outside"),
        ([head(), chunk({}, "abort")], "it ended its answer with abort"),
        ([head(), b"data: " + b"x" * 1_100_000 + b"\n\n"], "it sent an event of more than 1048576 bytes"),
        ([head(), lambda: b"x" * 65536], "it sent an event of more than 1048576 bytes"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], "it sent something else than HTTP"),
        ([CLOSE], "it closed the connection without an answer"),
        ([RESET], None),
        # h2 takes an answer of another length for the end of the connection.
        ([head(extra="Content-Length: 100\r\n"), b": x\n\n"], ("its answer broke off", "it sent something else than")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_answer_is_an_unavailable_backend(
    script: list[Step], problem: str | tuple[str, ...] | None
) -> None:
    events, error = await failure_of(*script)
    assert events == [] or problem is None
    assert isinstance(error, BackendUnavailable)
    assert problem is None or error.problem.startswith(problem)


@pytest.mark.parametrize("takes_none", [False, True])
async def test_a_backend_that_says_that_it_takes_no_request_now_is_told_from_one_that_fails_at_this_one(
    takes_none: bool,
) -> None:
    others = ("401 Who", "404 Not Found", "500 Oops", "502 Bad", "504 Late")
    for status in ("429 Too Many", "503 Busy") if takes_none else others:
        _, error = await failure_of(head("application/json", status), b"{}")
        assert isinstance(error, BackendUnavailable)
        assert error.takes_none is takes_none


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ([], "its answer broke off before a finish reason"),
        ([DONE], "its answer broke off before a finish reason"),
        ([b'data: {"choices":[{"delta":{"cont'], "its answer broke off before a finish reason"),
        ([event({"error": {"type": "server_error"}})], "it reported an error (server_error)"),
        ([STOP, chunk({"content": "more"})], "its answer went on after the finish reason"),
    ],
    ids=["end", "done", "half an event", "error event", "more"],
)
async def test_a_failure_in_the_middle_comes_after_what_was_answered(rest: list[Step], problem: str) -> None:
    events, error = await failure_of(head(), HELLO, *rest)
    assert events[:2] == HELLO_EVENTS[:2]
    assert error.problem == problem


async def test_a_chunked_answer_without_its_end_is_an_unavailable_backend() -> None:
    _, error = await failure_of(chunked(HELLO, STOP, ended=False), CLOSE)
    assert error.problem == "its answer broke off"


async def test_a_connection_that_is_reset_in_the_middle_is_an_unavailable_backend() -> None:
    async with (
        scripted_server(head(), HELLO, WAIT, RESET) as server,
        backend_at(server.url) as backend,
        aclosing(backend.generate(request())) as events,
        asyncio.timeout(SOON_SECONDS),
    ):
        assert [await anext(events), await anext(events)] == HELLO_EVENTS[:2]
        server.go_on.set()
        with pytest.raises(BackendUnavailable, match="broke"):
            await anext(events)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{}", "its answer broke off before a finish reason"),
        (b"", "it sent something else than a chat completion"),
        (b"\xff", "it sent an answer that is not UTF-8"),
        (b'{"error":{"type":"overloaded"}}', "it reported an error (overloaded)"),
        (b" " * 1_100_000, "it sent an answer of more than 1048576 bytes"),
    ],
)
async def test_a_bad_answer_that_is_not_streamed_is_an_unavailable_backend(body: bytes, problem: str) -> None:
    _, error = await failure_of(head("application/json"), body, stream=False)
    assert error.problem == problem


async def test_a_port_that_refuses_is_an_unavailable_backend() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with backend_at(f"http://127.0.0.1:{unused.getsockname()[1]}/v1") as backend:
            with pytest.raises(BackendUnavailable, match=r"cannot be connected to \(ECONNREFUSED\)"):
                await collect(backend)


async def test_a_host_without_an_address_is_an_unavailable_backend() -> None:
    async with backend_at("http://no-such-host.invalid/v1") as backend:
        with pytest.raises(BackendUnavailable, match="cannot be resolved"):
            await collect(backend)


async def test_a_server_that_does_not_speak_tls_is_an_unavailable_backend() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, backend_at(url) as backend:
        with pytest.raises(BackendUnavailable, match="TLS failed"):
            await collect(backend)


async def test_a_connection_that_does_not_come_up_ends_with_its_time_limit() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)  # accepted by the system; nobody answers the TLS greeting
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with backend_at(url, connect_timeout_seconds=0.1) as backend:
            with pytest.raises(BackendUnavailable, match="no connection within the time limit"):
                await collect(backend)


async def test_requests_beyond_the_connections_wait_no_longer_than_for_a_connection() -> None:
    options = {
        "connections_max": 1,
        "connect_timeout_seconds": 0.5,
    }  # with HTTP/2 the server's part takes its time, too
    http2_only = {"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 1}} if either_http.http_version == "2" else {}
    async with (
        scripted_server(head(), HELLO, HANG, **http2_only) as server,
        backend_at(server.url, **options) as backend,
        aclosing(backend.generate(request())) as events,
    ):
        await anext(events)
        with pytest.raises(BackendUnavailable, match="no connection within the time limit"):
            await collect(backend)


# --- leaving --------------------------------------------------------------------------------------------------------


async def test_closing_the_generator_closes_the_connection() -> None:
    async with scripted_server(head(), HELLO, HANG) as server, backend_at(server.url) as backend:
        async with aclosing(backend.generate(request())) as events:
            await anext(events)
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


@pytest.mark.parametrize(
    "script",
    [
        [HANG],
        [head(), HANG],
        [head(), HELLO, HANG],
        [head(), HELLO, STOP, DONE, HANG],
        [head("text/html", "500 Oops"), HANG],
    ],
    ids=["before the head", "before a byte", "between deltas", "before the end", "in an error"],
)
async def test_a_cancelled_task_closes_the_connection(script: list[Step]) -> None:
    async with scripted_server(*script) as server, backend_at(server.url) as backend:
        task = asyncio.create_task(collect(backend))
        await asyncio.wait_for(server.is_reached.wait(), SOON_SECONDS)
        for _ in range(10):  # let it get to the await that hangs
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, BackendUnavailable)):
            await task
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)


async def test_closing_the_backend_ends_its_streams() -> None:
    async with (
        scripted_server(head(), HELLO, HANG) as server,
        backend_at(server.url) as backend,
        aclosing(backend.generate(request())) as events,
        asyncio.timeout(SOON_SECONDS),
    ):
        await anext(events)
        await backend.close()
        await server.is_left.wait()


async def test_no_task_or_connection_is_left_behind() -> None:
    before = asyncio.all_tasks()
    for script in ([head(), HELLO, STOP, DONE], [head(), HELLO], [RESET], [head("text/html", "500 Oops"), HTML]):
        async with scripted_server(*script) as server, backend_at(server.url) as backend:
            for _ in range(3):
                try:
                    await collect(backend)
                except BackendUnavailable:
                    continue
            if isinstance(backend._http, Http1Client):
                assert backend._http._session.connector is not None
                assert not backend._http._session.connector._acquired
            else:
                assert isinstance(backend._http, Http2Client)
                assert all(not connection._streams for connection in backend._http._connections)
    gc.collect()  # what was left open warns here, and warnings are errors
    assert asyncio.all_tasks() == before


async def test_an_endless_answer_is_read_no_faster_than_it_is_consumed() -> None:
    # Without a limit the server could send as much as it can in the meantime.
    endless = chunk({"content": "x" * 20}) * 100
    async with scripted_server(head(), lambda: endless) as server, backend_at(server.url) as backend:
        async with aclosing(backend.generate(request())) as events:
            await anext(events)
            sent_bytes = -1
            while sent_bytes != server.sent_bytes:  # until it is stuck
                sent_bytes = server.sent_bytes
                await asyncio.sleep(0.1)
            await anext(events)
        # The kernel's two socket buffers come on top of what the adapter reads ahead.
        assert sent_bytes < 16 * 1024 * 1024
        await asyncio.wait_for(server.is_left.wait(), SOON_SECONDS)

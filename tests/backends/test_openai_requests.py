"""The OpenAI-compatible adapter: what it asks of a server."""

import json
from typing import Any

import either_http
import pytest
from either_http import scripted_server
from openai_harness import HELLO, KEY, SECRET_PROMPT, STOP, backend_at, collect, request
from scripted_backend import head

from metergate.backends.openai import OpenAIBackendOptions
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import Message, Prompt, ResponseFormat, ResponseFormatKind, Role, Sampling, Tool, ToolCall

pytestmark = pytest.mark.usefixtures("http_version")


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

"""The OpenAI-compatible adapter: what it makes of good answers."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from either_http import scripted_server
from openai_harness import (
    DONE,
    HELLO,
    HELLO_EVENTS,
    SOON_SECONDS,
    STOP,
    USAGE,
    USAGE_REPORT,
    backend_at,
    chunk,
    collect,
    events_of,
)
from scripted_backend import HANG, chunked, head

from metergate.core.inference import Delta, Finish, ToolCallDelta, UsageReport
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

pytestmark = pytest.mark.usefixtures("http_version")


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

"""What the webhook is asked, and that whatever is no verdict is a failure, never an approval."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from scripted_backend import CLOSE, RESET, scripted_server

from metergate.core.errors import ContentPolicyUnavailable
from metergate.core.inference import Delta, ToolCallDelta
from metergate.core.passage import Context, Passage
from metergate.policies.webhook import WebhookPolicy, WebhookPolicyOptions

PASSAGE = Passage(
    reservation_id="r-1",
    model_id="m-1",
    index=3,
    delta=Delta(
        content="new \u00e9",
        reasoning_content="thought",
        tool_calls=(ToolCallDelta(index=0, tool_call_id="c-1", name="f", arguments="{}"),),
    ),
    before=Context(content="old", reasoning_content="older", arguments="[1]"),
)


@asynccontextmanager
async def webhook(answer: Callable[[], web.Response]) -> AsyncIterator[tuple[WebhookPolicy, list[Any]]]:
    """A policy in front of a webhook that gives this answer, and what the webhook was sent."""
    sent: list[Any] = []

    async def vet(request: web.Request) -> web.Response:
        sent.append(json.loads(await request.text()))
        return answer()

    app = web.Application()
    app.router.add_post("/vet", vet)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    policy = WebhookPolicy(WebhookPolicyOptions(url=f"http://127.0.0.1:{port}/vet", connections_max=2))
    try:
        yield policy, sent
    finally:
        await policy.close()
        await runner.cleanup()


@pytest.mark.parametrize(("verdict", "is_allowed"), [("allow", True), ("block", False)])
async def test_the_webhook_decides(verdict: str, is_allowed: bool) -> None:
    async with webhook(lambda: web.json_response({"verdict": verdict, "why": "told to nobody"})) as (policy, sent):
        assert await policy.allows(PASSAGE) is is_allowed
    assert sent == [
        {
            "reservation": "r-1",
            "model": "m-1",
            "index": 3,
            "content": "new \u00e9",
            "reasoning_content": "thought",
            "tool_calls": [{"index": 0, "id": "c-1", "name": "f", "arguments": "{}"}],
            "before": {"content": "old", "reasoning_content": "older", "arguments": "[1]"},
        }
    ]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.json_response({"verdict": "allow"}, status=500),
        lambda: web.json_response({"verdict": "allow"}, status=201),
        lambda: web.Response(status=302, headers={"Location": "/vet"}),
        lambda: web.json_response({"verdict": "perhaps"}),
        lambda: web.json_response({"verdict": True}),
        lambda: web.json_response({}),
        lambda: web.json_response(["allow"]),
        lambda: web.Response(text="allow"),
        lambda: web.Response(body=b'{"verdict": "\xff"}'),
        lambda: web.Response(),
        lambda: web.json_response({"verdict": "allow", "why": "x" * 5_000}),
    ],
)
async def test_what_is_no_verdict_is_a_failure(answer: Callable[[], web.Response]) -> None:
    async with webhook(answer) as (policy, _):
        with pytest.raises(ContentPolicyUnavailable):
            await policy.allows(PASSAGE)


async def test_a_webhook_that_is_not_there_or_hangs_up_is_a_failure_that_quotes_nothing() -> None:
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    policy = WebhookPolicy(WebhookPolicyOptions(url=f"http://127.0.0.1:{port}/vet", connections_max=2))
    try:
        async with server:
            with pytest.raises(ContentPolicyUnavailable) as hung_up:
                await policy.allows(PASSAGE)
            assert connections <= 2
        with pytest.raises(ContentPolicyUnavailable) as refused:
            await policy.allows(PASSAGE)
    finally:
        await policy.close()
    for failure in (hung_up, refused):
        assert "new" not in str(failure.value)
        assert "127.0.0.1" not in str(failure.value)


ALLOWS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n" + b'{"verdict": "allow"}'


@pytest.mark.parametrize("closing", [CLOSE, RESET])
async def test_a_connection_that_is_closed_instead_of_a_verdict_is_no_failure(closing: str) -> None:
    """Both of them were kept, and the one that is asked again must not be the other."""
    async with scripted_server(ALLOWS, kept=[closing]) as server:
        policy = WebhookPolicy(WebhookPolicyOptions(url=server.url, connections_max=2))
        try:
            assert all(await asyncio.gather(policy.allows(PASSAGE), policy.allows(PASSAGE)))
            for _ in range(4):
                assert await policy.allows(PASSAGE)
        finally:
            await policy.close()


async def test_a_webhook_that_closes_right_after_each_verdict_is_no_failure() -> None:
    async with scripted_server(ALLOWS, CLOSE) as server:
        policy = WebhookPolicy(WebhookPolicyOptions(url=server.url, connections_max=2))
        try:
            assert [await policy.allows(PASSAGE) for _ in range(50)] == [True] * 50
        finally:
            await policy.close()


@pytest.mark.parametrize("closing", [CLOSE, RESET])
async def test_a_webhook_that_closes_every_connection_is_a_failure(closing: str) -> None:
    async with scripted_server(closing) as server:
        policy = WebhookPolicy(WebhookPolicyOptions(url=server.url, connections_max=2))
        try:
            with pytest.raises(ContentPolicyUnavailable):
                await policy.allows(PASSAGE)
        finally:
            await policy.close()
        assert len(server.received) == 2

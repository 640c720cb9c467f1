"""A whole gateway whose answers a webhook vets: the app, the books, and what is kept of the texts."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from app_client import inference
from gateway_process import cost, count_prompt, openai_backend
from open_gateway import open_gateway
from scripted_backend import CLOSE, head, scripted_server

from metergate.v1 import chat_pb2, inference_pb2

GOOD, BAD = "marmalade", "obelisk"


def event(content: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n".encode()


END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in the files of a running gateway."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@asynccontextmanager
async def webhook(allowed_once: asyncio.Event) -> AsyncIterator[str]:
    """The URL of a webhook that blocks what has BAD in it, and tells when it first allowed something."""

    async def vet(request: web.Request) -> web.Response:
        passage = json.loads(await request.text())
        is_bad = BAD in passage["before"]["content"] + passage["content"]
        if not is_bad:
            allowed_once.set()
        return web.json_response({"verdict": "block" if is_bad else "allow"})

    app = web.Application()
    app.router.add_post("/vet", vet)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/vet"
    finally:
        await runner.cleanup()


async def test_a_blocked_answer_ends_well_formed_is_charged_what_came_and_leaves_no_text_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    allowed = asyncio.Event()
    async with webhook(allowed) as url, scripted_server(head(), event(GOOD), "WAIT", event(BAD), END, CLOSE) as server:
        table = f'{openai_backend(server.url)}\n[content_policy]\nurl = "{url}"'
        async with open_gateway(tmp_path, table) as (app, _):
            stream = app.stream(inference("one", "Speak."))
            ending = asyncio.create_task(stream.ended())
            async with asyncio.timeout(20.0):
                await allowed.wait()
                server.go_on.set()
                answer = await ending
            kept = files_of(tmp_path)
    assert answer.text == GOOD
    receipt = answer.receipted
    assert receipt.finish_reason == chat_pb2.FINISH_REASON_CONTENT_FILTER
    assert receipt.close_cause == inference_pb2.CLOSE_CAUSE_CONTENT_BLOCKED
    assert receipt.charged_microcredits == cost(count_prompt("Speak."), GOOD)
    kept["the log"] = caplog.text.encode()
    for text in (GOOD, BAD):
        assert [name for name, content in kept.items() if text.encode() in content] == [], text


async def test_without_its_policy_nothing_is_delivered_and_nothing_charged(tmp_path: Path) -> None:
    async with webhook(asyncio.Event()) as url:
        pass
    async with scripted_server(head(), event(GOOD), END, CLOSE) as server:
        table = f'{openai_backend(server.url)}\n[content_policy]\nurl = "{url}"'
        async with open_gateway(tmp_path, table) as (app, books):
            answer = await app.stream(inference("one", "Speak.")).ended()
            assert answer.text == ""
            assert answer.refused.reason == "CONTENT_POLICY_UNAVAILABLE"
            assert books.charges() == {}

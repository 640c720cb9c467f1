"""L11: no prompt, no answer and no key is stored or logged, whatever happens to the request."""

import json
import logging
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from app_client import App, inference
from gateway_process import openai_backend
from open_gateway import open_gateway
from scripted_backend import CLOSE, Step, head, scripted_server

ASKED, ANSWERED = "zanzibar-quetzal", "marmalade-obelisk"


def event(content: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n".encode()


END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
QUOTED = json.dumps({"error": {"message": f"cannot read {ASKED}", "type": "invalid"}}).encode()


@pytest.mark.parametrize(
    "script",
    [
        [head(), event(ANSWERED), END, CLOSE],
        [head(), event(ANSWERED), b"data: " + ANSWERED.encode() + b"\n\n", CLOSE],
        [head(), event(ANSWERED), b"data: " + QUOTED + b"\n\n", CLOSE],
        [head("application/json", "400 Bad Request"), QUOTED, CLOSE],
        [head("text/html"), f"<html>{ASKED}</html>".encode(), CLOSE],
    ],
    ids=["well", "nonsense", "an error that quotes the prompt", "400 that quotes the prompt", "a page that quotes it"],
)
async def test_neither_the_store_nor_the_log_has_the_prompt_the_answer_or_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: list[Step]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with scripted_server(*script) as server, open_gateway(tmp_path, openai_backend(server.url)) as (app, _):
        await app.stream(inference("one", f"Say {ASKED}.")).ended()
        await try_complete(app)
        [(_, bearer)] = app.metadata
        kept = files_of(tmp_path)
    # What is kept is found where it is looked for.
    assert b"alice" in kept["ledger.db"] + kept["ledger.db-wal"]
    kept["the log"] = caplog.text.encode()
    for secret in (ASKED, ANSWERED, bearer.removeprefix("Bearer ")):
        assert [name for name, content in kept.items() if secret.encode() in content] == [], secret


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in the files of a running gateway."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


async def try_complete(app: App) -> None:
    """Ask for a whole answer; whether it comes is not the question here."""
    with suppress(grpc.aio.AioRpcError):
        await app.complete(inference("two", f"Say {ASKED}."))

"""A gateway before a server of HTTP/2: answers on one connection are charged each for itself, and nothing twice."""

import json
from pathlib import Path

import pytest
from app_client import inference
from gateway_process import cost, openai_backend
from h2.errors import ErrorCodes
from open_gateway import open_gateway
from scripted_backend import HANG, RESET, WAIT, Step, head
from scripted_http2 import Frames, goaway, reset, scripted_http2_server


def event(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ANSWER: tuple[Step, ...] = (head(), event("The sea."), END)


@pytest.mark.parametrize("refusal", [goaway(0), reset(ErrorCodes.REFUSED_STREAM)], ids=["goodbye", "refused stream"])
async def test_a_request_that_was_not_looked_at_is_sent_once_more_and_charged_once(
    tmp_path: Path, refusal: Frames
) -> None:
    async with (
        scripted_http2_server(*ANSWER, kept=[refusal, HANG]) as server,
        open_gateway(tmp_path, openai_backend(server.url, http_version="2")) as (app, books),
    ):
        for name in ("first", "second"):
            answer = await app.stream(inference(name)).ended()
            assert (answer.refusal, answer.text) == (None, "The sea.")
            assert books.charges()[name][0] == cost(answer.admitted.prompt_tokens, answer.text)
        assert [books.attempts(name) for name in ("first", "second")] == [["only"], ["only", "only"]]


async def test_answers_on_a_connection_that_breaks_are_each_charged_what_arrived(tmp_path: Path) -> None:
    async with (
        scripted_http2_server(head(), event("Hello sea"), WAIT, RESET) as server,
        open_gateway(tmp_path, openai_backend(server.url, http_version="2")) as (app, books),
    ):
        streams = [app.stream(inference(f"stream-{index}")) for index in range(8)]
        for stream in streams:
            await stream.until_characters(1)
        assert (server.connections, server.open_streams_max) == (1, 8)
        server.go_on.set()
        for index, stream in enumerate(streams):
            answer = await stream.ended()
            assert (answer.text, answer.refused.reason) == ("Hello sea", "BACKEND_UNAVAILABLE")
            assert books.charges()[f"stream-{index}"][0] == cost(answer.admitted.prompt_tokens, "Hello sea")

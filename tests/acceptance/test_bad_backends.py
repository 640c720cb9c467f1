"""Whatever a backend answers, the app gets the typed error or a well-formed end, and pays for what arrived, no more."""

import json
from pathlib import Path

import either_http
import grpc
import pytest
from app_client import Answer, cause, finish, inference
from certificates import Authority
from either_http import scripted_server
from gateway_process import cost, openai_backend
from open_gateway import open_gateway
from scripted_backend import CLOSE, HANG, RESET, Step, chunked, head
from word_model import WordModel, speaking

# Seconds; what is silent for longer is given up. Long enough that a busy machine does not take a slow test for silence.
PATIENCE_SECONDS = 1.0


def event(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
MEGABYTE = "The straight counterbalance of the sea. " * (1024 * 1024 // 40)


async def answer_of(folder: Path, *script: Step, max_completion_tokens: int | None = None) -> Answer:
    """The answer to one stream while the backend plays the script."""
    limits = {"first_token_seconds_max": PATIENCE_SECONDS, "between_tokens_seconds_max": PATIENCE_SECONDS}
    async with (
        scripted_server(*script) as server,
        open_gateway(folder, openai_backend(server.url, http_version=either_http.http_version), limits=limits) as (
            app,
            books,
        ),
    ):
        answer = await app.stream(inference("stream", max_completion_tokens=max_completion_tokens)).ended()
        charged_microcredits, _ = books.charges().get("stream", (0, ""))
        # Nothing that did not arrive is charged, not even the prompt if nothing at all did.
        arrived_microcredits = cost(answer.admitted.prompt_tokens, answer.text) if answer.text else 0
        assert charged_microcredits == arrived_microcredits
    return answer


@pytest.mark.usefixtures("http_version")
@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [
        ([head("application/json", "400 Bad Request"), b'{"error":{"message":"no"}}', CLOSE], "BACKEND_REJECTED", 3),
        ([head("text/plain", "500 Internal Server Error"), b"oops", CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([head("text/html"), b"<html><body>Welcome to nginx!</body></html>", CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([RESET], "BACKEND_UNAVAILABLE", 14),
        ([head(), CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([head(), END[:40], CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([head(), b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n', CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([b"\x00\x01\x02 this is not HTTP\r\n\r\n", CLOSE], "BACKEND_UNAVAILABLE", 14),
        ([head(), HANG], "BACKEND_UNAVAILABLE", 14),
        ([HANG], "BACKEND_UNAVAILABLE", 14),
    ],
    ids=[
        "400", "500", "HTML", "no answer", "reset", "no bytes", "half an event", "no UTF-8", "no HTTP",
        "silent after its head", "silent",
    ],
)  # fmt: skip
async def test_a_backend_that_delivers_nothing_is_a_typed_error_and_costs_nothing(
    tmp_path: Path, script: list[Step], reason: str, code: int
) -> None:
    answer = await answer_of(tmp_path, *script)
    assert answer.text == ""
    assert (answer.refused.reason, answer.refused.code.value[0]) == (reason, code)
    assert "charge" not in answer.refused.metadata


@pytest.mark.usefixtures("http_version")
@pytest.mark.parametrize(
    ("script", "close_cause"),
    [
        ([head(), event("Hello sea"), event(" and")[:30], CLOSE], "BACKEND_ERROR"),
        ([head(), event("Hello sea"), RESET], "BACKEND_ERROR"),
        ([head(), event("Hello sea"), b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', CLOSE], "BACKEND_ERROR"),
        ([head(), event("Hello sea"), b"data: <html>\n\n", CLOSE], "BACKEND_ERROR"),
        ([head(), event("Hello sea"), b'data: {"error": {"message": "out of memory"}}\n\n', CLOSE], "BACKEND_ERROR"),
        ([head(), event("Hello sea"), HANG], "BACKEND_TIMEOUT"),
    ],
    ids=["half an event", "reset", "no UTF-8", "no JSON", "an error", "silent"],
)
async def test_a_backend_that_fails_after_the_first_token_is_charged_what_arrived(
    tmp_path: Path, script: list[Step], close_cause: str
) -> None:
    answer = await answer_of(tmp_path, *script)
    assert answer.text == "Hello sea"
    assert answer.refused.code is grpc.StatusCode.UNAVAILABLE
    assert answer.refused.reason == "BACKEND_UNAVAILABLE"
    assert answer.refused.metadata["charge"] == answer.receipted.charge
    assert cause(answer.receipted) == close_cause


# Just below the megabyte that one event may have.
async def test_one_enormous_delta_is_cut_at_the_length_and_delivered_in_bounded_pieces(tmp_path: Path) -> None:
    answer = await answer_of(tmp_path, head(), event(MEGABYTE[:900_000]), END, max_completion_tokens=1_000)
    assert answer.refusal is None
    assert finish(answer.receipted) == "LENGTH"
    assert MEGABYTE.startswith(answer.text)
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)
    assert max(map(len, answer.deliveries)) <= 2_048


async def test_a_delta_above_the_size_of_an_event_is_refused(tmp_path: Path) -> None:
    answer = await answer_of(tmp_path, head(), event(MEGABYTE * 2), END)
    assert answer.refused.reason == "BACKEND_UNAVAILABLE"
    assert answer.text == ""


async def test_an_empty_wallet_cuts_an_enormous_delta_to_what_it_pays(tmp_path: Path) -> None:
    script = (head(), event(MEGABYTE[:100_000]), END)
    async with (
        scripted_server(*script) as server,
        open_gateway(tmp_path, openai_backend(server.url), microcredits=1_000) as (app, _),
    ):
        answer = await app.stream(inference("cut")).ended()
    assert finish(answer.receipted) == "CREDIT_EXHAUSTED"
    assert MEGABYTE.startswith(answer.text)
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text) <= 1_000
    assert answer.receipted.available_microcredits < 8


async def test_complete_charges_nothing_for_half_an_answer(tmp_path: Path) -> None:
    script = (head(), event("Hello sea"), RESET)
    async with scripted_server(*script) as server, open_gateway(tmp_path, openai_backend(server.url)) as (app, books):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await app.complete(inference("half"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert books.charges() == {}


async def test_a_backend_that_is_not_there_is_unavailable_and_costs_nothing(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, openai_backend("http://127.0.0.1:9/v1")) as (app, books):
        answer = await app.stream(inference("nobody")).ended()
        assert answer.refused.reason == "BACKEND_UNAVAILABLE"
        assert answer.refused.retry_seconds is not None
        assert books.charges() == {}


@pytest.mark.parametrize("reported", [{"prompt_tokens": 1, "completion_tokens": 0}, {"prompt_tokens": 10**15}])
async def test_a_backends_absurd_report_changes_no_price(tmp_path: Path, reported: dict[str, int]) -> None:
    model = WordModel(words=40, reports_usage=lambda _: reported)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, _):
        answer = await app.stream(inference("liar")).ended()
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)
    assert answer.text == model.text(40)


async def test_a_backend_that_does_not_prove_itself_is_sent_nothing_and_one_that_does_serves(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority("a stranger")
    context = authority.issue().server_context(tmp_path)
    async with scripted_server(head(), event("The sea."), END, tls=context) as server:
        for name, pem in (("proven", authority.pem), ("unproven", stranger.pem)):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "ca.crt").write_bytes(pem)
            table = f'{openai_backend(server.url)}\nca_path = "{folder / "ca.crt"}"'
            async with open_gateway(folder, table) as (app, books):
                answer = await app.stream(inference("stream")).ended()
                if name == "proven":
                    assert (answer.refusal, answer.text) == (None, "The sea.")
                else:
                    assert answer.refused.reason == "BACKEND_UNAVAILABLE"
                    assert "certificate" in answer.refused.metadata["problem"]
                    assert books.charges() == {}
        assert len(server.received) == 1


@pytest.mark.parametrize("closing", [CLOSE, RESET])
async def test_an_only_backend_that_closes_kept_connections_costs_no_request_and_nothing_twice(
    tmp_path: Path, closing: str, http_version: str
) -> None:
    answer = chunked(event("The sea."), END)
    async with (
        scripted_server(answer, kept=[closing]) as server,
        open_gateway(tmp_path, openai_backend(server.url, http_version=http_version)) as (app, books),
    ):
        names = [f"stream-{index}" for index in range(6)]
        for name in names:
            got = await app.stream(inference(name)).ended()
            assert got.text == "The sea."
            assert books.charges()[name][0] == cost(got.admitted.prompt_tokens, got.text)
        attempts = [books.attempts(name) for name in names]
    # Every other request finds the connection of the one before, and is sent once more.
    assert attempts[0] == ["only"]
    assert ["only", "only"] in attempts
    assert len(server.received) == sum(map(len, attempts))

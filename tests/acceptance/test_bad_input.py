"""What an app may send wrongly, through the whole gateway: refused with a typed error, before any backend is called."""

from pathlib import Path
from typing import Any

import pytest
from app_client import App, inference
from edge_harness import bearer, key_of, refused
from gateway_process import openai_backend
from open_gateway import open_gateway
from word_model import WordModel, speaking

from metergate.v1 import inference_pb2

LONG = "sea " * 3_000


@pytest.mark.parametrize(
    ("fields", "code", "reason", "names"),
    [
        ({"text": LONG}, "INVALID_ARGUMENT", "PROMPT_TOO_LONG", "inference.messages"),
        ({"max_completion_tokens": 0}, "INVALID_ARGUMENT", "INVALID_REQUEST", "inference.max_completion_tokens"),
        ({"credit_limit_microcredits": 1}, "FAILED_PRECONDITION", "CAP_REACHED", None),
        ({"model": "models/unknown"}, "NOT_FOUND", "MODEL_NOT_FOUND", None),
        ({"messages": []}, "INVALID_ARGUMENT", "INVALID_REQUEST", "inference.messages"),
        ({"request_id": ""}, "INVALID_ARGUMENT", "INVALID_REQUEST", "inference.request_id"),
    ],
    ids=["too long", "no tokens", "limit below the prompt", "model", "no messages", "no id"],
)
async def test_a_request_that_cannot_run_is_refused_and_costs_nothing(
    tmp_path: Path, fields: dict[str, Any], code: str, reason: str, names: str | None
) -> None:
    request = inference("bad", fields.pop("text", "Hello"))
    if "messages" in fields:
        del request.messages[:]
        del fields["messages"]
    for name, value in fields.items():
        setattr(request, name, value)
    async with speaking(WordModel()) as model, open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        for refusal in [(await app.stream(request).ended()).refused, await refused(app.complete(request))]:
            assert (refusal.code.name, refusal.reason) == (code, reason)
            assert names is None or names in refusal.violations
        assert (model.requests, books.reservations()) == (0, 0)


async def test_a_message_above_the_size_limit_is_refused_by_name_and_above_four_times_by_grpc(tmp_path: Path) -> None:
    async with (
        speaking(WordModel()) as model,
        open_gateway(tmp_path, openai_backend(model.url), limits={"message_bytes_max": 10_000}) as (app, books),
    ):
        refusal = (await app.stream(inference("large", "a" * 20_000)).ended()).refused
        assert (refusal.code.name, refusal.reason) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")
        assert refusal.metadata["bytes_max"] == "10000"
        refusal = (await app.stream(inference("huge", "a" * 100_000)).ended()).refused
        assert refusal.code.name == "RESOURCE_EXHAUSTED"
        assert (model.requests, books.reservations()) == (0, 0)
        # The connection is still good.
        assert (await app.stream(inference("small")).ended()).receipt is not None


@pytest.mark.parametrize("metadata", [bearer(key_of(9)), bearer("mg_short"), (("authorization", "Basic eA=="),), ()])
async def test_without_a_known_key_nothing_is_served(tmp_path: Path, metadata: tuple[tuple[str, str], ...]) -> None:
    async with speaking(WordModel()) as model, open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        app.metadata = metadata
        answers = [
            (await app.stream(inference("who")).ended()).refused,
            await refused(app.complete(inference("who"))),
            await refused(_count(app)),
        ]
        assert {(answer.code.name, answer.reason) for answer in answers} == {("UNAUTHENTICATED", "UNAUTHENTICATED")}
        assert (model.requests, books.reservations()) == (0, 0)


async def _count(app: App) -> inference_pb2.CountTokensResponse:
    request = inference("none")
    return await app.inference.CountTokens(
        inference_pb2.CountTokensRequest(model=request.model, messages=request.messages), metadata=app.metadata
    )


async def test_the_last_token_of_the_context_can_be_asked_for(tmp_path: Path) -> None:
    async with speaking(WordModel(words=None)) as model, open_gateway(tmp_path, openai_backend(model.url)) as (app, _):
        # Each " sea" is one token: the text is lengthened until the prompt leaves room for one token.
        overhead = (await _prompt_tokens(app, "sea")) - 1
        text = "sea" + " sea" * (2048 - 1 - overhead - 1)
        assert await _prompt_tokens(app, text) == 2047
        answer = await app.stream(inference("full", text)).ended()
        assert answer.refusal is None
        assert (await app.stream(inference("fuller", text + " sea")).ended()).refused.reason == "PROMPT_TOO_LONG"


async def _prompt_tokens(app: App, text: str) -> int:
    request = inference("none", text)
    quote = await app.inference.CountTokens(
        inference_pb2.CountTokensRequest(model=request.model, messages=request.messages), metadata=app.metadata
    )
    return quote.prompt_tokens

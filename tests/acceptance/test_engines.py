"""A whole gateway in front of engines of both protocols: delivered, counted by ids, charged, aborted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import grpc
import pytest
from app_client import EVENT_SECONDS_MAX, App, cause, finish, inference, tokens
from engine_servers import HANG, Complete, Kind, ScriptedEngine, Step, serving
from gateway_process import CARD, Books
from open_gateway import open_gateway
from real_vocabularies import read_vocabulary, smollm2_path

from metergate.core.inference import Message, Prompt, Role
from metergate.core.rating import rate_ceil
from metergate.core.usage import TokenClass, Usage
from metergate.ports import TokenCodec
from metergate.tokenizers.open import TokenizerSpec, open_codec
from metergate.v1 import chat_pb2, usage_pb2

both = pytest.mark.parametrize("kind", ["vllm", "sglang"])
TEXT = "天空是蓝色的🙂, isn't it?"
END_OF_TURN = 2


@cache
def codec() -> TokenCodec:
    return open_codec(TokenizerSpec(kind="gguf", path=smollm2_path()))


@cache
def ids_of(text: str) -> tuple[int, ...]:
    ids = read_vocabulary("smollm2").ids
    assert ids is not None
    return tuple(ids.encode_rendered(text))


def one_by_one(text: str) -> list[Step]:
    return [[token_id] for token_id in ids_of(text)]


def cost(prompt_tokens: int, completion_tokens: int) -> int:
    return rate_ceil(Usage.of({TokenClass.PROMPT: prompt_tokens, TokenClass.COMPLETION: completion_tokens}), CARD)


@asynccontextmanager
async def gateway_of(
    folder: Path, kind: Kind, *script: Step, microcredits: int = 10_000_000, **limits: float
) -> AsyncIterator[tuple[ScriptedEngine, App, Books]]:
    engine = ScriptedEngine(kind, script, served_model_name="smollm2-135m", vocabulary_tokens=49_152)
    async with serving(engine):
        backend = f'kind = "{kind}"\naddress = "127.0.0.1:{engine.port}"'
        async with open_gateway(folder, backend, microcredits=microcredits, limits=limits, counting="TOKEN_IDS") as (
            app,
            books,
        ):
            yield engine, app, books


@both
async def test_an_answer_is_delivered_and_charged_by_its_ids(tmp_path: Path, kind: Kind) -> None:
    script = [*one_by_one(TEXT), [END_OF_TURN], Complete(prompt=49, cached=0)]
    async with gateway_of(tmp_path, kind, *script) as (engine, app, books):
        answer = await app.stream(inference("r1", "为什么？")).ended()
        receipt = answer.receipted
        prompt_tokens = answer.admitted.prompt_tokens
        assert answer.text == TEXT
        assert (finish(receipt), cause(receipt)) == ("STOP", "FINISHED")
        assert tokens(receipt.usage_counted) == {"PROMPT": prompt_tokens, "COMPLETION": len(ids_of(TEXT))}
        assert tokens(receipt.usage_reported)["COMPLETION"] == len(ids_of(TEXT)) + 1
        assert receipt.charged_microcredits == cost(prompt_tokens, len(ids_of(TEXT)))
        assert receipt.counting_source == usage_pb2.COUNTING_SOURCE_TOKEN_IDS
        assert len(engine.requests[0].tokenized.input_ids) == prompt_tokens
        assert books.charges()["r1"] == (receipt.charged_microcredits, "FINISHED")


@both
async def test_cached_prompt_tokens_lower_the_charge(tmp_path: Path, kind: Kind) -> None:
    async with gateway_of(tmp_path, kind, *one_by_one(TEXT), Complete(prompt=40, cached=16)) as (_, app, _):
        receipt = (await app.stream(inference("r1")).ended()).receipted
        assert tokens(receipt.usage_counted)["CACHED_PROMPT"] == 16


@both
async def test_a_cancel_aborts_the_request_and_charges_what_was_delivered(tmp_path: Path, kind: Kind) -> None:
    async with gateway_of(tmp_path, kind, *one_by_one(TEXT), HANG) as (engine, app, books):
        answer = app.stream(inference("r1"))
        await answer.until_characters(len(TEXT))
        answer.call.cancel()
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            await engine.is_aborted.wait()
        assert engine.aborted == [engine.requests[0].request_id]
        prompt_tokens = answer.admitted.prompt_tokens
    assert books.charges()["r1"] == (cost(prompt_tokens, len(ids_of(TEXT))), "CLIENT_CANCELLED")


@both
async def test_credit_that_ends_aborts_the_request_at_a_whole_character(tmp_path: Path, kind: Kind) -> None:
    prompt_tokens = len(codec().encode_prompt(_prompt("Tell me of the sea.")))
    affordable = 4  # 天 has two ids, 空 three
    async with gateway_of(tmp_path, kind, *one_by_one(TEXT), HANG, microcredits=cost(prompt_tokens, affordable)) as (
        engine,
        app,
        _,
    ):
        answer = await app.stream(inference("r1")).ended()
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            await engine.is_aborted.wait()
    whole = b"".join(codec().token_bytes(token_id) or b"" for token_id in ids_of(TEXT)[:affordable])
    assert answer.text == whole.decode(errors="ignore")
    assert finish(answer.receipted) == "CREDIT_EXHAUSTED"
    assert answer.receipted.charged_microcredits <= cost(prompt_tokens, affordable)


@both
async def test_an_engine_that_hangs_is_left_and_aborted(tmp_path: Path, kind: Kind) -> None:
    async with gateway_of(tmp_path, kind, *one_by_one("So"), HANG, between_tokens_seconds_max=0.3) as (engine, app, _):
        answer = await app.stream(inference("r1")).ended()
        assert answer.refusal is not None
        assert answer.refusal.reason == "BACKEND_UNAVAILABLE"
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            await engine.is_aborted.wait()


@both
@pytest.mark.parametrize(
    "step", [Complete(reason="abort"), grpc.StatusCode.INTERNAL, [49_152]], ids=["abort", "status", "unknown id"]
)
async def test_an_engine_that_fails_midway_charges_what_was_delivered(tmp_path: Path, kind: Kind, step: Step) -> None:
    async with gateway_of(tmp_path, kind, *one_by_one(TEXT), step) as (_, app, _):
        answer = await app.stream(inference("r1")).ended()
        assert answer.refusal is not None
        assert answer.refusal.reason == "BACKEND_UNAVAILABLE"
        receipt = answer.receipted
        assert cause(receipt) == "BACKEND_ERROR"
        delivered = tokens(receipt.usage_counted).get("COMPLETION", 0)
        shown = b"".join(codec().token_bytes(token_id) or b"" for token_id in ids_of(TEXT)[:delivered])
        assert answer.text == shown.decode()


async def test_a_stop_text_ends_the_answer_before_it(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, "vllm", *one_by_one("one\ntwo\nEND\nthree"), HANG) as (engine, app, _):
        asked = inference("r1", sampling=chat_pb2.Sampling(stop=["END"]))
        answer = await app.stream(asked).ended()
        assert (answer.text, finish(answer.receipted)) == ("one\ntwo\n", "STOP")
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            await engine.is_aborted.wait()


async def test_tools_are_refused_by_their_name(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, "vllm", [1], Complete()) as (engine, app, _):
        asked = inference("r1", tools=[chat_pb2.Tool(name="look")])
        answer = await app.stream(asked).ended()
        assert answer.refusal is not None
        assert answer.refusal.reason == "INVALID_REQUEST"
        assert engine.requests == []


def _prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role=Role.USER, parts=(text,)),))

"""The adapters of vLLM's and SGLang's engine protocols, against servicers of those protocols."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from backend_requests import a_request
from engine_servers import DETAILS, HANG, PROMPT_TOKENS, Complete, Kind, ScriptedEngine, Step, serving

from metergate.backends.engine import EngineBackend, EngineBackendOptions, EngineModel, read_defaults
from metergate.core.errors import BackendRejected, BackendUnavailable
from metergate.core.inference import (
    BackendEvent,
    BackendRequest,
    Finish,
    ResponseFormat,
    ResponseFormatKind,
    Sampling,
    TokenIds,
    UsageReport,
)
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

SOON_SECONDS = 5.0
STOP = Finish(reason=FinishReason.STOP)

both = pytest.mark.parametrize("kind", ["vllm", "sglang"])


def request(**fields: Any) -> BackendRequest:
    return a_request(DETAILS, **({"max_completion_tokens": 50, "prompt_token_ids": [5, 6, 7]} | fields))


@asynccontextmanager
async def backend_of(engine: ScriptedEngine, **options: Any) -> AsyncIterator[EngineBackend]:
    models = {"smol": EngineModel(name="model-1", context_tokens=2048, token_ids_max=49_152)}
    backend = EngineBackend(
        EngineBackendOptions(
            **{
                "backend_id": "engine",
                "kind": engine.kind,
                "address": f"127.0.0.1:{engine.port}",
                "models": models,
                "connect_timeout_seconds": 2.0,
                **options,
            }
        )
    )
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def scripted(kind: Kind, *script: Step, **fields: Any) -> AsyncIterator[tuple[ScriptedEngine, EngineBackend]]:
    async with serving(ScriptedEngine(kind, script, **fields)) as engine, backend_of(engine) as backend:
        yield engine, backend


async def events(backend: EngineBackend, asked: BackendRequest | None = None) -> list[BackendEvent]:
    async with asyncio.timeout(SOON_SECONDS):
        return [
            TokenIds(list(event.token_ids)) if isinstance(event, TokenIds) else event
            async for event in backend.generate(asked or request())
        ]


def report(prompt: int, cached: int, completion: int, reasoning: int = 0) -> UsageReport:
    classes = (TokenClass.PROMPT, TokenClass.CACHED_PROMPT, TokenClass.COMPLETION, TokenClass.REASONING)
    return UsageReport(usage=Usage.of(dict(zip(classes, (prompt, cached, completion, reasoning), strict=True))))


@both
async def test_ids_come_once_though_the_last_ones_are_repeated_and_usage_is_of_the_whole_answer(kind: Kind) -> None:
    async with scripted(kind, [1, 2], [3], [4, 5], Complete(cached=4)) as (_, backend):
        expected = [TokenIds([1, 2]), TokenIds([3]), TokenIds([4, 5]), STOP, report(PROMPT_TOKENS - 4, 4, 5)]
        assert await events(backend) == expected


@both
async def test_an_answer_that_is_only_completed_has_its_ids_from_there(kind: Kind) -> None:
    async with scripted(kind, Complete(output_ids=(8, 9), reason="length")) as (_, backend):
        length = Finish(reason=FinishReason.LENGTH)
        assert await events(backend) == [TokenIds([8, 9]), length, report(PROMPT_TOKENS, 0, 2)]


@both
async def test_ids_go_as_they_were_counted_with_a_request_id_of_their_own(kind: Kind) -> None:
    async with scripted(kind, [1], Complete()) as (engine, backend):
        for _ in range(2):
            await events(backend, request(trace_context={"traceparent": "00-1"}))
        first, second = engine.requests
    assert list(first.tokenized.input_ids) == [5, 6, 7]
    assert first.tokenized.original_text == ""
    assert first.stream
    assert first.request_id != second.request_id
    assert engine.metadata[0]["traceparent"] == "00-1"
    assert DETAILS not in str(first)


SAMPLING = Sampling(temperature=0.0, top_p=0.5, stop=("END",), presence_penalty=0.25, frequency_penalty=-0.5)


@both
async def test_what_the_app_asked_is_sent_and_its_stop_texts_stay_in_the_gateway(kind: Kind) -> None:
    defaults = '{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.125, "repetition_penalty": 1.5}'
    async with scripted(kind, [1], Complete(), defaults_json=defaults) as (engine, backend):
        await events(backend, request(sampling=SAMPLING))
    params = engine.requests[0].sampling_params
    assert (params.temperature, params.top_p, params.presence_penalty, params.frequency_penalty) == (0, 0.5, 0.25, -0.5)
    assert (params.top_k, params.min_p, params.repetition_penalty, params.n) == (20, 0.125, 1.5, 1)
    assert (params.max_tokens if kind == "vllm" else params.max_new_tokens) == 50
    assert list(params.stop) == []
    assert params.skip_special_tokens
    assert not params.ignore_eos


@both
async def test_what_nobody_asked_is_neutral(kind: Kind) -> None:
    async with scripted(kind, [1], Complete(), defaults_json="no json") as (engine, backend):
        await events(backend)
    params = engine.requests[0].sampling_params
    assert (params.temperature, params.top_p, params.min_p, params.repetition_penalty) == (1.0, 1.0, 0.0, 1.0)
    assert params.top_k == (0 if kind == "vllm" else -1)


def test_defaults_that_are_no_numbers_are_left_out() -> None:
    assert read_defaults('{"temperature": 0.5, "top_p": "x", "top_k": true, "max_new_tokens": 7}') == {
        "temperature": 0.5
    }
    assert read_defaults("[1]") == read_defaults("") == {}


@both
async def test_json_is_asked_for_in_the_protocol_s_own_way(kind: Kind) -> None:
    json_object = ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT)
    json_schema = ResponseFormat(kind=ResponseFormatKind.JSON_SCHEMA, schema_name="x", json_schema='{"type": "array"}')
    async with scripted(kind, [1], Complete()) as (engine, backend):
        for response_format in (json_object, json_schema):
            await events(backend, request(response_format=response_format))
    first, second = (message.sampling_params for message in engine.requests)
    assert first.json_object if kind == "vllm" else first.json_schema == '{"type": "object"}'
    assert second.json_schema == '{"type": "array"}'


async def test_vllm_takes_seeds_of_32_bits_and_sglang_none() -> None:
    async with scripted("vllm", [1], Complete()) as (engine, backend):
        await events(backend, request(sampling=Sampling(seed=-7)))
        assert engine.requests[0].sampling_params.seed == -7
        with pytest.raises(BackendRejected, match="32 bits"):
            await events(backend, request(sampling=Sampling(seed=2**31)))
    async with scripted("sglang", [1], Complete()) as (engine, backend):
        with pytest.raises(BackendRejected, match="no seed"):
            await events(backend, request(sampling=Sampling(seed=7)))
        assert engine.requests == []


async def test_sglang_s_reasoning_is_taken_out_of_its_completion() -> None:
    async with scripted("sglang", [1, 2, 3], Complete(reasoning=2)) as (_, backend):
        assert (await events(backend))[-1] == report(PROMPT_TOKENS, 0, 1, 2)


@both
async def test_a_usage_that_cannot_be_true_is_ignored(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(kind, [1], Complete(cached=8, prompt=7)) as (_, backend):
        assert await events(backend) == [TokenIds([1]), STOP]
    assert "cannot be true" in caplog.text


# --- ends -----------------------------------------------------------------------------------------------------------


@both
async def test_leaving_an_answer_aborts_the_request_by_its_id(kind: Kind) -> None:
    async with scripted(kind, [1], HANG) as (engine, backend):
        async with aclosing(backend.generate(request())) as answer:
            await anext(answer)
        async with asyncio.timeout(SOON_SECONDS):
            await engine.is_aborted.wait()
        assert engine.aborted == [engine.requests[0].request_id]


@both
async def test_a_cancelled_reader_aborts_a_request_that_said_nothing_yet(kind: Kind) -> None:
    async with scripted(kind, HANG) as (engine, backend):
        reading = asyncio.create_task(events(backend))
        async with asyncio.timeout(SOON_SECONDS):
            await engine.is_reached.wait()
            reading.cancel()
            await engine.is_aborted.wait()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert engine.aborted == [engine.requests[0].request_id]


@both
async def test_closing_waits_for_what_is_being_aborted(kind: Kind) -> None:
    async with serving(ScriptedEngine(kind, [[1], HANG])) as engine:
        async with backend_of(engine) as backend, aclosing(backend.generate(request())) as answer:
            await anext(answer)
        assert len(engine.aborted) == 1


@both
async def test_an_answer_that_ended_is_not_aborted(kind: Kind) -> None:
    async with serving(ScriptedEngine(kind, [[1], Complete()])) as engine:
        async with backend_of(engine) as backend:
            await events(backend)
        assert engine.aborted == []


@both
async def test_an_abort_that_fails_is_told_without_its_details(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(ScriptedEngine(kind, [[1], HANG], is_abort_refused=True)) as engine,
        backend_of(engine) as backend,
        aclosing(backend.generate(request())) as answer,
    ):
        await anext(answer)
    assert "could not abort a request: gRPC status INTERNAL" in caplog.text
    assert DETAILS not in caplog.text


@both
@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_answer_that_the_engine_gave_up_is_no_answer(kind: Kind, reason: str) -> None:
    async with scripted(kind, [1], Complete(reason=reason)) as (_, backend):
        with pytest.raises(BackendUnavailable, match=f"ended its answer with {reason}"):
            await events(backend)


@both
async def test_an_unknown_finish_reason_promises_the_least(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(kind, [1], Complete(reason="repetition")) as (_, backend):
        assert STOP in await events(backend)
    assert "not known" in caplog.text


@both
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([[1]], "broke off before a finish reason"),
        ([[1], Complete(), [2]], "went on after the finish reason"),
    ],
)
async def test_answers_that_make_no_sense_are_refused(kind: Kind, script: Sequence[Step], problem: str) -> None:
    async with scripted(kind, *script) as (_, backend):
        with pytest.raises(BackendUnavailable, match=problem):
            await events(backend)


@both
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, BackendRejected),
        (grpc.StatusCode.INTERNAL, BackendUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BackendUnavailable),
    ],
)
async def test_a_status_is_told_by_its_name_only(
    kind: Kind, code: grpc.StatusCode, error: type[BackendRejected | BackendUnavailable]
) -> None:
    async with scripted(kind, [1], code) as (engine, backend):
        with pytest.raises(error, match=f"gRPC status {code.name}") as failure:
            await events(backend)
        assert DETAILS not in str(failure.value)
        assert engine.aborted == []


async def test_a_refused_connection_is_told_at_once() -> None:
    engine = ScriptedEngine("vllm", [])
    async with serving(engine):
        pass
    async with backend_of(engine) as backend:
        assert not await backend.is_up()
        with pytest.raises(BackendUnavailable, match="UNAVAILABLE") as raised:
            await events(backend)
        assert raised.value.takes_none


# --- which model it runs ----------------------------------------------------------------------------------------------

WRONG = [
    ({"served_model_name": "another"}, "it runs /models/one or another, not model-1"),
    ({"is_generation": False}, "does not generate"),
    ({"context_tokens": 1024}, "context has 1024 tokens, not 2048"),
    ({"vocabulary_tokens": 32_000}, "vocabulary has 32000 ids"),
]


@both
@pytest.mark.parametrize(("fields", "problem"), WRONG)
async def test_an_engine_of_another_model_is_not_used(
    kind: Kind, fields: dict[str, Any], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(kind, [1], Complete(), **fields) as (engine, backend):
        with pytest.raises(BackendUnavailable, match=problem) as raised:
            await events(backend)
        assert raised.value.takes_none
        assert engine.requests == []
        assert not await backend.is_up()
        assert not await backend.is_up()
    [line] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert problem in line.getMessage()


@both
async def test_an_engine_is_known_by_its_path_too_and_what_it_does_not_say_is_not_held_against_it(kind: Kind) -> None:
    silent = {"served_model_name": "", "context_tokens": 0, "vocabulary_tokens": 0}
    engine = ScriptedEngine(kind, [[1], Complete()], **silent)  # type: ignore[arg-type]
    models = {"smol": EngineModel(name="/models/one", context_tokens=2048, token_ids_max=49_152)}
    async with serving(engine), backend_of(engine, models=models) as backend:
        assert await backend.is_up()
        assert await events(backend)


@both
async def test_it_is_up_when_it_is_healthy_and_a_look_runs_no_model(kind: Kind) -> None:
    async with scripted(kind, [1], Complete()) as (engine, backend):
        assert await backend.is_up()
        engine.is_healthy = False
        assert not await backend.is_up()
        assert engine.requests == []
        assert engine.models_run_by_looks == 0


@both
async def test_the_model_is_asked_for_once_and_again_after_a_failure(kind: Kind) -> None:
    async with scripted(kind, [1], Complete()) as (engine, backend):
        await events(backend)
        await events(backend)
        assert engine.looks == 1
        engine.script = [grpc.StatusCode.UNAVAILABLE]
        with pytest.raises(BackendUnavailable):
            await events(backend)
        engine.served_model_name = "another"
        with pytest.raises(BackendUnavailable, match="it runs"):
            await events(backend)


async def test_a_model_that_it_is_not_set_up_for_is_refused() -> None:
    async with scripted("vllm", [1], Complete()) as (_, backend):
        with pytest.raises(BackendUnavailable, match="not set up"):
            await events(backend, request(model_id="other"))


async def test_its_key_is_sent_and_not_shown() -> None:
    async with (
        serving(ScriptedEngine("vllm", [[1], Complete()])) as engine,
        backend_of(engine, api_key="sk-secret") as backend,
    ):
        await events(backend)
        assert engine.metadata[0]["authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in repr(backend._options)

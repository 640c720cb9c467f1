"""SIGTERM: nothing more is admitted, what runs ends within the set time with its receipt, and the exit code is 0."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
from app_client import App, cause, inference
from gateway_process import GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from grpc_health.v1 import health_pb2, health_pb2_grpc
from word_model import WordModel, speaking

from metergate.v1 import inference_pb2

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
DRAIN_SECONDS = 0.5


async def until_not_serving(app: App) -> None:
    """Watch the health service until it says that apps should go elsewhere."""
    stub: Any = health_pb2_grpc.HealthStub(app.channel)
    async with asyncio.timeout(20):
        async for response in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
            if response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return


async def test_sigterm_in_the_middle_of_a_stream_settles_it_and_exits_with_0(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=None, interval_seconds=0.01)) as model:
        write_config(tmp_path, openai_backend(model.url), drain_seconds_max=DRAIN_SECONDS)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(inference("drained", max_completion_tokens=1_800))
                await answer.until_characters(20)
                told_at = time.monotonic()
                gateway.signal(signal.SIGTERM)
                await until_not_serving(app)
                refused = (await app.stream(inference("too-late")).ended()).refused
                assert refused.code is grpc.StatusCode.UNAVAILABLE
                assert refused.reason == "SHUTTING_DOWN"
                await answer.ended()
                seconds = time.monotonic() - told_at
            code = await asyncio.to_thread(gateway.wait)
            assert code == 0, gateway.log()
        assert DRAIN_SECONDS <= seconds < DRAIN_SECONDS + 3.0
        assert cause(answer.receipted) == "DRAINED"
        assert answer.refused.reason == "SHUTTING_DOWN"
        assert answer.refused.metadata["charge"] == answer.receipted.charge
        assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)
        assert gateway.books.open_reservations() == 0
        verify(tmp_path)


async def test_a_stream_that_ends_within_the_drain_time_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=40, hold_after=20)) as model:
        write_config(tmp_path, openai_backend(model.url), drain_seconds_max=15)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(inference("in-time"))
                await answer.until_characters(len(model.text(20)))
                gateway.signal(signal.SIGTERM)
                await until_not_serving(app)
                model.go_on.set()
                await answer.ended()
            assert await asyncio.to_thread(gateway.wait) == 0, gateway.log()
    assert answer.refusal is None
    assert answer.text == model.text(40)
    assert cause(answer.receipted) == "FINISHED"


async def test_a_second_sigterm_ends_the_process_at_once_and_the_next_start_settles_what_it_left(
    tmp_path: Path,
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=None, interval_seconds=0.01)) as model:
        write_config(tmp_path, openai_backend(model.url), drain_seconds_max=60)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(inference("left", max_completion_tokens=1_800))
                await answer.until_characters(20)
                gateway.signal(signal.SIGTERM)
                await until_not_serving(app)
                gateway.signal(signal.SIGTERM)
                await answer.ended()
            assert await asyncio.to_thread(gateway.wait) in (0, -signal.SIGTERM)
            gateway.start()
            charged_microcredits, close_cause = gateway.books.charges()["left"]
            assert charged_microcredits >= cost(answer.admitted.prompt_tokens, answer.text)
            assert close_cause in ("CRASH", "DRAINED")
            assert gateway.books.open_reservations() == 0
        verify(tmp_path)

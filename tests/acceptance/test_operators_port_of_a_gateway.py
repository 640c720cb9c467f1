"""What an operator's tools see of a gateway process: readiness that follows the backend, overload, a scanned port."""

import asyncio
import json
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
from app_client import App, inference
from gateway_process import GatewayProcess, open_wallets, openai_backend, write_config
from grpc_health.v1 import health_pb2, health_pb2_grpc
from word_model import WordModel, speaking

CHANGE_SECONDS_MAX = 30.0  # a look every 2 s, each of at most 2 s, on a busy machine


def get(gateway: GatewayProcess, path: str) -> tuple[int, bytes]:
    try:
        with urlopen(f"http://127.0.0.1:{gateway.metrics_port}{path}", timeout=10) as response:
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


async def until_ready_is(gateway: GatewayProcess, status: int) -> dict[str, Any]:
    """Wait for /readyz to answer so; what it says."""
    async with asyncio.timeout(CHANGE_SECONDS_MAX):
        while True:
            seen, body = await asyncio.to_thread(get, gateway, "/readyz")
            if seen == status:
                return dict(json.loads(body))
            await asyncio.sleep(0.1)


async def health_of(gateway: GatewayProcess, service: str) -> str:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def test_readiness_and_grpc_health_follow_the_backend(tmp_path: Path, backend_port: int) -> None:
    await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    backend = AsyncExitStack()
    model = await backend.enter_async_context(speaking(WordModel(), backend_port))
    write_config(tmp_path, openai_backend(model.url))
    with GatewayProcess(tmp_path) as gateway:
        await until_ready_is(gateway, 200)
        await backend.aclose()
        lost = await until_ready_is(gateway, 503)
        assert lost["checks"] == {"ledger": "ok", "audit": "ok", "backends": {"only": "down"}, "draining": False}
        assert await health_of(gateway, "metergate.v1.InferenceService") == "NOT_SERVING"
        assert await health_of(gateway, "metergate.v1.AccountService") == "SERVING"
        assert (await asyncio.to_thread(get, gateway, "/livez"))[0] == 200
        async with speaking(WordModel(), backend_port):
            await until_ready_is(gateway, 200)
            assert await health_of(gateway, "metergate.v1.InferenceService") == "SERVING"


async def test_requests_above_the_limit_are_refused_typed_and_streams_go_on(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=20, hold_after=5)) as model:
        write_config(tmp_path, openai_backend(model.url), requests_max=2, calls_max=10)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                streams = [app.stream(inference(f"stream-{number}")) for number in range(2)]
                for stream in streams:
                    await stream.until_characters(1)
                refused = await app.stream(inference("one-too-many")).ended()
                assert refused.refused.code is grpc.StatusCode.UNAVAILABLE
                assert refused.refused.reason == "OVERLOADED"
                assert refused.refused.retry_seconds == 1
                model.go_on.set()
                answers = [await stream.ended() for stream in streams]
                assert [answer.text for answer in answers] == [model.text(20)] * 2
                again = await app.stream(inference("one-too-many")).ended()
                assert again.text == model.text(20)
            body = (await asyncio.to_thread(get, gateway, "/metrics"))[1].decode()
    assert 'outcome="OVERLOADED",verb="StreamComplete"} 1.0' in body


async def test_a_scan_of_the_port_with_garbage_changes_nothing(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    noise = random.Random(11)
    async with speaking(WordModel(words=200, interval_seconds=0.002)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                stream = app.stream(inference("undisturbed"))
                await asyncio.gather(*(scan(gateway, noise.randbytes(noise.randint(1, 10_000))) for _ in range(150)))
                answer = await stream.ended()
            assert answer.text == model.text(200)
            assert (await asyncio.to_thread(get, gateway, "/livez"))[0] == 200
            assert "aiohttp" not in gateway.log()


async def scan(gateway: GatewayProcess, garbage: bytes) -> None:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.metrics_port)
        writer.write(garbage)
        await writer.drain()
        writer.close()
    except OSError:
        return  # it was cut off, as it may be

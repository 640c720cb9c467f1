"""A real Prometheus scrapes a real gateway, and the queries and alerts of the guide work on it."""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc
import pytest
from app_client import App, inference
from gateway_process import GatewayProcess, open_wallets, openai_backend, write_config
from word_model import WordModel, speaking

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
QUERIES = re.findall(r"```promql\n(.*?)```", (GUIDES / "monitor.md").read_text(), re.DOTALL)
SCRAPES = """
global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}
scrape_configs:
  - job_name: metergate
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
rule_files: ["{rules}"]
"""

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None,
    reason="prometheus and promtool are not installed: apt-get install prometheus",
)

# It starts in a second or two; a machine that runs other tests may need much longer.
STARTED_SECONDS_MAX = 30.0


@asynccontextmanager
async def prometheus(folder: Path, metrics_port: int) -> AsyncIterator[str]:
    """A Prometheus that scrapes the port; its URL."""
    assert PROMETHEUS is not None
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(SCRAPES.format(port=metrics_port, rules=GUIDES / "alerts.yml"))
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("w") as written:
        process = await asyncio.create_subprocess_exec(PROMETHEUS, *arguments, stderr=written)
        try:
            yield f"http://127.0.0.1:{await listening_port(log)}"
        finally:
            process.terminate()
            await process.wait()


async def listening_port(log: Path) -> int:
    """Where a Prometheus listens, once it says so in its log."""
    async with asyncio.timeout(STARTED_SECONDS_MAX):
        while True:
            said = re.search(r'"Listening on" address=127\.0\.0\.1:(\d+)', await asyncio.to_thread(log.read_text))
            if said is not None:
                return int(said[1])
            await asyncio.sleep(0.05)


def ask(url: str, query: str) -> list[dict[str, object]]:
    """What an instant query returns: series whose value is a number."""
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': query})}", timeout=10) as response:
        answer = json.load(response)
    assert answer["status"] == "success", answer
    return [series for series in answer["data"]["result"] if series["value"][1] != "NaN"]


async def until_true(url: str, query: str) -> None:
    """Wait until a query returns something."""
    end = time.monotonic() + STARTED_SECONDS_MAX
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # it is starting
            if await asyncio.to_thread(ask, url, query):
                return
        await asyncio.sleep(0.1)
    raise AssertionError(f"no data in {STARTED_SECONDS_MAX:g} s: {query}")


@asynccontextmanager
async def busy_gateway(folder: Path) -> AsyncIterator[tuple[GatewayProcess, App, WordModel]]:
    """A gateway in front of a backend that reports another usage than it says."""
    keys = await open_wallets(folder / "ledger.db", {"alice": 100_000_000})
    model = WordModel(words=10, interval_seconds=0.001)
    model.reports_usage = lambda words: {"prompt_tokens": 5, "completion_tokens": 90, "total_tokens": 95}
    async with speaking(model):
        write_config(folder, openai_backend(model.url))
        with GatewayProcess(folder) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                yield gateway, app, model


async def make_everything_happen(app: App, model: WordModel, name: str) -> None:
    """A stream, a whole answer, a replay, a failing backend, an unknown model."""
    await app.stream(inference(f"stream-{name}")).ended()
    await app.complete(inference(f"whole-{name}"))
    await app.complete(inference(f"whole-{name}"))
    model.break_after = 0
    with pytest.raises(grpc.aio.AioRpcError):
        await app.complete(inference(f"broken-{name}"))
    model.break_after = None
    unknown = inference(f"unknown-{name}")
    unknown.model = "models/none"
    with pytest.raises(grpc.aio.AioRpcError):
        await app.complete(unknown)


@needs_prometheus
@pytest.mark.timeout(120)
async def test_a_real_prometheus_scrapes_the_gateway_and_every_query_of_the_guide_returns_data(tmp_path: Path) -> None:
    assert len(QUERIES) >= 20
    async with busy_gateway(tmp_path) as (gateway, app, model), prometheus(tmp_path, gateway.metrics_port) as url:
        await make_everything_happen(app, model, "first")
        await until_true(url, "metergate_requests_total")
        await until_true(url, "count_over_time(metergate_requests_total[1m]) > 2")
        await make_everything_happen(app, model, "second")
        await until_true(url, 'increase(metergate_requests_total{outcome="BACKEND_UNAVAILABLE"}[1m]) > 0')
        without_data = [query for query in QUERIES if not await asyncio.to_thread(ask, url, query)]
        assert without_data == []
        shares = await asyncio.to_thread(ask, url, 'metergate_usage_reports_total{result="mismatch"} > 0')
        assert shares
        await until_true(url, 'ALERTS{alertname="MetergateUsageMismatch"}')
        assert not await asyncio.to_thread(ask, url, 'ALERTS{alertname=~"MetergateDown|MetergateNotReady"}')


@needs_prometheus
async def test_promtool_finds_nothing_wrong_with_a_busy_gateways_metrics(tmp_path: Path) -> None:
    async with busy_gateway(tmp_path) as (gateway, app, model):
        await make_everything_happen(app, model, "only")
        body = await asyncio.to_thread(read, f"http://127.0.0.1:{gateway.metrics_port}/metrics")
    checked = promtool("check", "metrics", text=body)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_alerts_and_they_fire_when_they_should() -> None:
    checked = promtool("check", "rules", str(GUIDES / "alerts.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yml")))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def read(url: str) -> bytes:
    with urlopen(url, timeout=10) as response:
        return bytes(response.read())


def promtool(*arguments: str, text: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, check=False, timeout=30)

"""The ledger beside a gateway that serves: backed up, exported, watched; somebody is forgotten; the books differ."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import aiohttp
import grpc
import pytest
from app_client import App, inference
from gateway_process import GatewayProcess, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

Run = Callable[..., Awaitable[tuple[int, str, str]]]

# Rounds and looks come every fraction of a second here.
WAIT_SECONDS_MAX = 20.0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds: of another process nothing but asking tells."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def refusal(app: App, request_id: str) -> str:
    """The reason for which a request is refused."""
    return (await app.stream(inference(request_id)).ended()).refused.reason


async def test_the_ledger_is_backed_up_exported_and_forgets_somebody_while_the_gateway_serves(
    tmp_path: Path, run: Run
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000, "bob": 1_000_000})
    async with speaking(WordModel(words=3)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as alice, App(gateway.port, keys["bob"]) as bob:
                for name, app in (("alice", alice), ("bob", bob)):
                    await app.complete(inference(f"{name}-asks"))
                code, out, err = await run("ledger", "backup", "backup.db")
                assert (code, out) == (0, "backup.db\n"), err
                code, _, err = await run("ledger", "restore", "backup.db")
                assert code == 2
                assert "a gateway or another command is writing it" in err
                code, out, err = await run("ledger", "export", "charges", "--output", "charges.jsonl")
                assert code == 0, err
                assert json.loads(out)["rows"] == 2

                why = ("--reason", "asked to be forgotten", "--actor", "ops")
                code, pseudonym, err = await run("subscriber", "erase", "alice", *why)
                assert code == 0, err
                with pytest.raises(grpc.aio.AioRpcError, match="the key is unknown"):
                    await alice.complete(inference("alice-asks-again"))
                await bob.complete(inference("bob-asks-again"))
                for file in ("ledger.db", "ledger.db-wal"):
                    assert b"alice" not in (tmp_path / file).read_bytes()
                code, out, _ = await run("wallet", "show", pseudonym.strip())
                assert code == 0
                code, _, err = await run("subscriber", "erase", "alice", *why)
                assert code == 2
                assert "There is no subscribers/alice." in err
    verify(tmp_path)
    code, _, err = await run("ledger", "restore", "backup.db")
    assert code == 0, err
    verify(tmp_path)
    code, out, _ = await run("wallet", "show", "alice")
    assert code == 0


@pytest.mark.parametrize("stops", [True, False])
async def test_a_difference_is_found_told_and_stops_admissions_where_that_was_asked_for(
    tmp_path: Path, stops: bool
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=3)) as model:
        file = write_config(tmp_path, openai_backend(model.url))
        audit = f"interval_seconds = 0.1\nstop_admissions_on_difference = {str(stops).lower()}"
        file.write_text(f"{file.read_text()}\n[audit]\n{audit}\n")
        with GatewayProcess(tmp_path) as gateway:
            operator = f"http://127.0.0.1:{gateway.metrics_port}"
            async with App(gateway.port, keys["alice"]) as app, aiohttp.ClientSession(operator) as session:

                async def metric(line: str) -> bool:
                    async with session.get("/metrics") as answer:
                        return line in (await answer.text()).splitlines()

                await app.complete(inference("before"))
                await until(lambda: metric("metergate_account_imbalance_microcredits 0.0"))
                assert await metric('metergate_audited_subscribers_total{result="different"} 0.0')
                with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as tamperer:
                    tamperer.execute("UPDATE transfers SET amount_microcredits = amount_microcredits + 1")

                async def is_found() -> bool:
                    return not await metric('metergate_audited_subscribers_total{result="different"} 0.0')

                await until(is_found)
                async with session.get("/readyz") as answer:
                    assert (answer.status, (await answer.json())["checks"]["audit"]) == (
                        (503, "the books differ") if stops else (200, "ok")
                    )
                if stops:
                    assert await refusal(app, "after") == "LEDGER_DIFFERS"
                else:
                    await app.complete(inference("after"))
        assert any("books differ" in line for line in gateway.lines())

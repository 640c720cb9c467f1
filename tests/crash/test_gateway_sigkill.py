"""A gateway process killed in mid-stream (L5): what arrived was debited, and at most one delivery more."""

import asyncio
import random
from pathlib import Path

from app_client import App, cause, inference
from gateway_process import GatewayProcess, metergate, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

from crash.killing import DELIVERY_CHARACTERS, live_and_die

LIVES = 5
STREAMS = 3


async def test_whenever_the_gateway_is_killed_the_charge_covers_what_arrived_and_at_most_one_delivery_more(
    tmp_path: Path,
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    chance = random.Random(20261123)
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        write_config(tmp_path, openai_backend(model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        with GatewayProcess(tmp_path) as gateway:
            lives = [await live_and_die(gateway, keys["alice"], model, chance, n, STREAMS) for n in range(LIVES)]
            assert model.requests <= LIVES * STREAMS, "a replay reached the backend"
        verify(tmp_path)
    assert sum(life.arrived_microcredits for life in lives) > 0


async def test_a_second_gateway_on_the_same_store_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=40, hold_after=20)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(inference("first"))
                await answer.until_characters(len(model.text(20)))
                second = await asyncio.to_thread(metergate, tmp_path, "serve")
                assert second.returncode == 2
                assert second.stderr.strip().count("\n") == 0, second.stderr
                assert "stop it first" in second.stderr
                model.go_on.set()
                await answer.ended()
            assert answer.text == model.text(40)
            assert cause(answer.receipted) == "FINISHED"

"""A gateway process killed in mid-stream (L5): what arrived was debited, and at most one delivery more."""

import asyncio
from pathlib import Path

import pytest
from app_client import App, cause, inference
from gateway_process import GatewayProcess, metergate, open_wallets, openai_backend, write_config
from word_model import WordModel, speaking

from crash.killing import kill_and_check

# ``make soak`` kills two hundred times.
KILLS = 6


@pytest.mark.timeout(120)
async def test_whenever_the_gateway_is_killed_the_charges_cover_what_arrived_and_at_most_one_delivery_a_stream_more(
    tmp_path: Path,
) -> None:
    tally = await kill_and_check(tmp_path, kills=KILLS, streams=4, seed=20261123)
    assert tally.kills == KILLS
    assert tally.cut_short > KILLS, "the kills came when nothing streamed"


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

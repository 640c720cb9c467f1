"""A gateway process killed in mid-stream (L5): what arrived was debited, and at most one delivery more."""

import asyncio
import os
from pathlib import Path

import pytest
import soak
from app_client import App, cause, inference
from gateway_process import GatewayProcess, metergate, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

from crash.kills import DELIVERY_CHARACTERS, Killed, most_microcredits

# ``make soak`` sets more; a kill with its start takes some two seconds.
KILLS = int(os.environ.get("SOAK_KILLS", "5"))
SEED = 20261124


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_whenever_the_gateway_is_killed_the_charges_cover_what_arrived_and_at_most_one_delivery_more(
    tmp_path: Path,
) -> None:
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        killed = Killed(tmp_path, model, SEED)
        await killed.open()
        try:
            for number in range(KILLS):
                await killed.round()
                soak.progress("kills", number + 1, KILLS)
            await killed.close()
        finally:
            if killed.gateway.is_running:
                killed.gateway.kill()
    figures = killed.figures
    assert figures.kills == KILLS
    assert figures.recovered > KILLS // 2, "hardly a stream was running when the gateway died"
    soak.tell(
        "crash",
        kills=figures.kills,
        streams=figures.streams,
        receipts_before_the_kill=figures.receipts,
        charged_by_recovery=figures.recovered,
        never_admitted=figures.uncharged,
        arrived_microcredits=figures.arrived_microcredits,
        charged_microcredits=figures.charged_microcredits,
        charged_beyond_what_arrived_microcredits_max=figures.excess_microcredits_max,
        arrived_beyond_what_was_charged=0,
    )


async def test_a_request_that_a_crash_ended_is_replayed_and_never_asked_again(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        write_config(tmp_path, openai_backend(model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        request = inference("crash", max_completion_tokens=1_800)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(request)
                await answer.until_characters(200)
                await asyncio.to_thread(gateway.kill)
                await answer.ended()
            await asyncio.to_thread(gateway.start)
            charged_microcredits, close_cause = gateway.books.charges()["crash"]
            assert close_cause == "CRASH"
            assert charged_microcredits <= most_microcredits(answer.admitted.prompt_tokens, model, answer.text)
            async with App(gateway.port, keys["alice"]) as app:
                replay = await app.stream(request).ended()
            assert cause(replay.receipted) == "CRASH"
            assert replay.receipted.replayed
            assert replay.receipted.charged_microcredits == charged_microcredits
            assert replay.text == "", "the text died with the gateway"
            assert model.requests == 1, "a replay reached the backend"
        verify(tmp_path)


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

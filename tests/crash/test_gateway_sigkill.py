"""A gateway process killed in mid-stream (L5): what arrived was debited, and at most one delivery more."""

import asyncio
import random
from pathlib import Path

from app_client import App, cause, inference
from gateway_process import GatewayProcess, cost, metergate, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

ROUNDS = 5

# The most of one delivery, the least that the configuration allows: so the bound of the loss is tight.
DELIVERY_CHARACTERS = 16


def most_microcredits(prompt_tokens: int, model: WordModel, arrived: str) -> int:
    """The most that may be captured when this text has arrived: the price of it with one delivery more.

    Counts of a growing text are not monotone, so the peak may lie before its end.
    """
    length = len(arrived)
    text = model.text(length + DELIVERY_CHARACTERS)
    ends = range(max(length - DELIVERY_CHARACTERS, 0), length + DELIVERY_CHARACTERS + 1)
    return max(cost(prompt_tokens, text[:end]) for end in ends)


async def test_whenever_the_gateway_is_killed_the_charge_covers_what_arrived_and_at_most_one_delivery_more(
    tmp_path: Path,
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    chance = random.Random(20261123)
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        write_config(tmp_path, openai_backend(model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        with GatewayProcess(tmp_path) as gateway:
            for number in range(ROUNDS):
                request = inference(f"crash-{number}", max_completion_tokens=1_800)
                async with App(gateway.port, keys["alice"]) as app:
                    answer = app.stream(request)
                    await answer.until_characters(chance.randrange(1, 600))
                    await asyncio.to_thread(gateway.kill)
                    await answer.ended()
                assert answer.receipt is None
                await asyncio.to_thread(gateway.start)
                charged_microcredits, close_cause = gateway.books.charges()[request.request_id]
                arrived_microcredits = cost(answer.admitted.prompt_tokens, answer.text)
                assert close_cause == "CRASH"
                assert arrived_microcredits <= charged_microcredits
                assert charged_microcredits <= most_microcredits(answer.admitted.prompt_tokens, model, answer.text)
                async with App(gateway.port, keys["alice"]) as app:
                    replay = await app.stream(request).ended()
                assert cause(replay.receipted) == "CRASH"
                assert replay.receipted.replayed
                assert replay.receipted.charged_microcredits == charged_microcredits
                assert replay.text == "", "the text died with the gateway"
            assert model.requests == ROUNDS, "a replay reached the backend"
            assert gateway.books.open_reservations() == 0
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

"""A real gateway killed with SIGKILL under streams, again and again, on one file."""

import asyncio
import random
import tempfile
from pathlib import Path

from crash.killing import DELIVERY_CHARACTERS, Life, live_and_die
from gateway_process import GatewayProcess, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

from soak.parts import Figures, Step

STREAMS = 4


def crash(lives: int, step: Step) -> Figures:
    """Live and die so often; the ledger is verified after each life."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_crash(Path(folder), lives, step))


async def _crash(folder: Path, count: int, step: Step) -> Figures:
    keys = await open_wallets(folder / "ledger.db", {"alice": 10**12})
    chance = random.Random()
    lives: list[Life] = []
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        write_config(folder, openai_backend(model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        with GatewayProcess(folder) as gateway:
            for number in range(count):
                lives.append(await live_and_die(gateway, keys["alice"], model, chance, number, STREAMS))
                await asyncio.to_thread(verify, folder)
                step()
    arrived = sum(life.arrived_microcredits for life in lives)
    return {
        "streams cut:": f"{sum(life.streams for life in lives):,}",
        "microcredits arrived:": f"{arrived:,}",
        "debited and not delivered, of that:": f"{sum(life.undelivered_microcredits for life in lives) / arrived:.2%}",
        "most in one life, microcredits:": f"{max(life.undelivered_microcredits for life in lives):,}",
    }

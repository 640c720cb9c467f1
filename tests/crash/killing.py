"""A gateway killed again and again while it streams, and what must hold after each restart (L5)."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from app_client import PROMPT, Answer, App, cause, inference
from gateway_process import (
    GatewayProcess,
    cost,
    count_prompt,
    open_wallets,
    openai_backend,
    verify,
    write_config,
)
from ledger_rows import differences
from word_model import WordModel, speaking

from metergate.stores.sqlite import SqliteLedgerReader
from metergate.v1 import inference_pb2

# The most of one delivery, the least that the configuration allows: so the bound of the loss is tight.
DELIVERY_CHARACTERS = 16

# Some answers end before most kills, some never.
COMPLETION_TOKENS = (12, 120, 1_800, 1_800)

# The kill comes when the streams together brought so much text; 0: as soon as they were asked for.
CHARACTERS_MAX = 1_200
ARRIVE_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.001


@dataclass(slots=True)
class Tally:
    """What the kills met."""

    kills: int = 0
    cut_short: int = 0  # requests without a receipt
    admission_lost: int = 0  # of them, those that were charged although not even their admission arrived
    receipted: int = 0
    most_lost_microcredits: int = 0  # captured and not arrived, of one stream


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, the key it came with, and what arrived of its answer."""

    request: inference_pb2.Inference
    key: str
    answer: Answer


def most_microcredits(prompt_tokens: int, model: WordModel, arrived: str) -> int:
    """The most that may be captured when this text has arrived: the price of it with one delivery more.

    Counts of a growing text are not monotone, so the peak may lie before its end.
    """
    length = len(arrived)
    text = model.text(length + DELIVERY_CHARACTERS)
    ends = range(max(length - DELIVERY_CHARACTERS, 0), length + DELIVERY_CHARACTERS + 1)
    return max(cost(prompt_tokens, text[:end]) for end in ends)


async def kill_and_check(
    folder: Path, *, kills: int, streams: int, seed: int, progress: Callable[[int], None] = lambda number: None
) -> Tally:
    """Kill a gateway so many times in the midst of so many streams, start it again on the same file, and check."""
    keys = await open_wallets(folder / "ledger.db", {"alice": 10_000_000_000, "bob": 10_000_000_000})
    chance, tally = random.Random(seed), Tally()
    async with speaking(WordModel(words=None, interval_seconds=0.001)) as model:
        write_config(folder, openai_backend(model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        with GatewayProcess(folder) as gateway:
            for number in range(kills):
                progress(number)
                asked = await _stream_until_killed(gateway, list(keys.values()), streams, number, chance)
                await asyncio.to_thread(gateway.start)
                charges = gateway.books.charges()
                for one in asked:
                    _check(charges.get(one.request.request_id), one.answer, model, tally)
                await _check_ledger(gateway)
                await _check_replay(gateway, chance.choice(asked), model)
                tally.kills += 1
        verify(folder)
    return tally


async def _stream_until_killed(
    gateway: GatewayProcess, keys: list[str], streams: int, number: int, chance: random.Random
) -> list[Asked]:
    """What was asked, and what had arrived of it when the gateway was gone."""
    async with AsyncExitStack() as stack:
        apps = [(key, await stack.enter_async_context(App(gateway.port, key))) for key in keys]
        asked = []
        for index in range(streams):
            key, app = apps[index % len(apps)]
            request = inference(f"crash-{number}-{index}", max_completion_tokens=chance.choice(COMPLETION_TOKENS))
            asked.append(Asked(request, key, app.stream(request)))
        await _until_arrived(asked, chance.randrange(CHARACTERS_MAX))
        await asyncio.to_thread(gateway.kill)
        for one in asked:
            await one.answer.ended()
        return asked


async def _until_arrived(asked: list[Asked], characters: int) -> None:
    """Wait until all answers together are so long, or all have ended."""
    async with asyncio.timeout(ARRIVE_SECONDS_MAX):
        while not _arrived(asked, characters):  # noqa: ASYNC110 - of many streams, none of which announces the sum
            await asyncio.sleep(LOOK_SECONDS)


def _arrived(asked: list[Asked], characters: int) -> bool:
    text = sum(len(one.answer.text) for one in asked)
    return text >= characters or all(one.answer.receipt is not None for one in asked)


def _check(charge: tuple[int, str] | None, answer: Answer, model: WordModel, tally: Tally) -> None:
    assert model.text(len(answer.text) + 1).startswith(answer.text)
    if answer.receipt is not None:
        tally.receipted += 1
        assert charge == (answer.receipt.charged_microcredits, cause(answer.receipt))
        return
    tally.cut_short += 1
    if answer.admission is None and charge is None:
        assert not answer.text
        return
    assert charge is not None
    prompt_tokens = count_prompt(PROMPT)
    arrived_microcredits = 0
    if answer.admission is None:
        tally.admission_lost += 1
    else:
        assert answer.admission.prompt_tokens == prompt_tokens
        arrived_microcredits = cost(prompt_tokens, answer.text)
    charged_microcredits, close_cause = charge
    # An answer whose receipt was on its way is settled at its own end.
    assert close_cause in {"CRASH", "FINISHED"}
    assert arrived_microcredits <= charged_microcredits
    assert charged_microcredits <= most_microcredits(prompt_tokens, model, answer.text)
    if answer.admission is not None:
        lost_microcredits = charged_microcredits - arrived_microcredits
        tally.most_lost_microcredits = max(tally.most_lost_microcredits, lost_microcredits)


async def _check_ledger(gateway: GatewayProcess) -> None:
    """Nothing is left open, nothing was charged twice, and everything adds up."""
    assert gateway.books.open_reservations() == 0
    assert gateway.books.charged_twice() == []
    reader = await SqliteLedgerReader.open_read_only(gateway.books.store)
    try:
        assert await differences(reader) == []
    finally:
        await reader.close()


async def _check_replay(gateway: GatewayProcess, asked: Asked, model: WordModel) -> None:
    """Asking again for a request that was charged costs nothing more and does not reach the backend."""
    charge = gateway.books.charges().get(asked.request.request_id)
    if charge is None:
        return
    requests = model.requests
    async with App(gateway.port, asked.key) as app:
        replay = await app.stream(asked.request).ended()
    assert (replay.receipted.charged_microcredits, cause(replay.receipted)) == charge
    assert replay.receipted.replayed
    assert replay.text == "", "the text died with the gateway"
    assert model.requests == requests, "a replay reached the backend"
    assert gateway.books.charges()[asked.request.request_id] == charge

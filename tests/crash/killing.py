"""One life of a gateway: streams run, it is killed at a moment of chance, the next one finds what it left."""

import asyncio
import random
from dataclasses import dataclass

from app_client import Answer, App, cause, inference
from gateway_process import GatewayProcess, cost
from word_model import WordModel

# The most of one delivery, the least that the configuration allows: so the bound of the loss is tight.
DELIVERY_CHARACTERS = 16

# Of each answer: more than arrives before the kill.
COMPLETION_TOKENS_MAX = 1_800
KILLED_AFTER_CHARACTERS_MAX = 600


@dataclass(frozen=True, slots=True)
class Life:
    """What one killed process had come to, over all its streams."""

    streams: int
    arrived_microcredits: int  # the price of what the apps got
    charged_microcredits: int  # by recovery; never less

    @property
    def undelivered_microcredits(self) -> int:
        """Debited, and lost with the process."""
        return self.charged_microcredits - self.arrived_microcredits


async def live_and_die(
    gateway: GatewayProcess, key: str, model: WordModel, chance: random.Random, number: int, streams: int
) -> Life:
    """Run streams, kill the gateway, start it again, and check each stream's charge (L1, L3, L4, L5)."""
    requests = [
        inference(f"crash-{number}-{stream}", max_completion_tokens=COMPLETION_TOKENS_MAX) for stream in range(streams)
    ]
    async with App(gateway.port, key) as app:
        answers = [app.stream(request) for request in requests]
        await answers[0].until_characters(chance.randrange(1, KILLED_AFTER_CHARACTERS_MAX))
        await asyncio.to_thread(gateway.kill)
        for answer in answers:
            await answer.ended()
    await asyncio.to_thread(gateway.start)
    assert gateway.books.open_reservations() == 0
    charges, delivered = gateway.books.charges(), gateway.books.delivered()
    arrived = charged = 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.receipt is None
        if answer.admission is None:  # killed before it was admitted; perhaps it had captured the prompt
            continue
        charged_microcredits, close_cause = charges[request.request_id]
        arrived_microcredits = cost(answer.admission.prompt_tokens, answer.text)
        assert close_cause == "CRASH"
        assert arrived_microcredits <= charged_microcredits
        whole = model.text(COMPLETION_TOKENS_MAX)
        most = most_microcredits(answer.admission.prompt_tokens, whole, delivered[request.request_id])
        assert charged_microcredits <= most, f"{charged_microcredits} charged, {most} at most"
        arrived += arrived_microcredits
        charged += charged_microcredits
    async with App(gateway.port, key) as app:
        replay = await app.stream(requests[0]).ended()
    check_replay(replay, charges[requests[0].request_id][0])
    return Life(streams=streams, arrived_microcredits=arrived, charged_microcredits=charged)


def check_replay(replay: Answer, charged_microcredits: int) -> None:
    """Asked again, the request is answered with the charge that recovery made of it."""
    assert cause(replay.receipted) == "CRASH"
    assert replay.receipted.replayed
    assert replay.receipted.charged_microcredits == charged_microcredits
    assert replay.text == "", "the text died with the gateway"


def most_microcredits(prompt_tokens: int, text: str, delivered_microcredits: int) -> int:
    """The most that may be captured when so much was delivered before: the price of that with one delivery more.

    Delivered is what was handed to gRPC. What of it the app had not read when the process died is lost with the
    connection, and on a machine that has no time for the app that may be several deliveries: so what arrived bounds
    what was captured from below only. Counts of a growing text are not monotone, so the peak may lie before its end.
    """
    peak = cost(prompt_tokens, "")
    delivered_microcredits = max(delivered_microcredits, peak)
    characters = end = 0  # the most that may have been delivered
    while end < min(len(text), characters + DELIVERY_CHARACTERS):
        end += 1
        price = cost(prompt_tokens, text[:end])
        peak = max(peak, price)
        if price <= delivered_microcredits:
            characters = end
    return peak

"""One life of a gateway: streams run, it is killed at a moment of chance, the next one finds what it left."""

import asyncio
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app_client import EVENT_SECONDS_MAX, Answer, App, cause, inference
from gateway_process import GatewayProcess, cost
from word_model import WordModel

# The most of one delivery, the least that the configuration allows: so the bound of the loss is tight.
DELIVERY_CHARACTERS = 16

# Of each answer: more than arrives before the kill.
COMPLETION_TOKENS_MAX = 1_800
KILLED_AFTER_CHARACTERS_MAX = 600

# Looks in a row that find nothing new. The kernel tells what the library did not fetch, not what its task did not.
QUIET_TURNS = 10


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
        gateway.signal(signal.SIGSTOP)  # whatever it was doing: it will do no more
        await until_all_arrived(gateway.port, answers)
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
        most = most_microcredits(answer.admission.prompt_tokens, model, answer.text)
        assert charged_microcredits <= most, f"{charged_microcredits} charged, {most} at most"
        known = delivered[request.request_id]
        assert known <= most_microcredits(answer.admission.prompt_tokens, model, answer.text, more_characters=0)
        arrived += arrived_microcredits
        charged += charged_microcredits
    async with App(gateway.port, key) as app:
        replay = await app.stream(requests[0]).ended()
    check_replay(replay, charges[requests[0].request_id][0])
    return Life(streams=streams, arrived_microcredits=arrived, charged_microcredits=charged)


async def until_all_arrived(port: int, answers: Sequence[Answer]) -> None:
    """Wait until the apps have read what a gateway that is stopped had sent.

    The kernel throws away, with the connection, what of it nobody read when a process dies: on a busy machine several
    deliveries, which the gateway has no part in. What it had not handed to the kernel itself is lost all the same.
    """
    quiet_turns = 0
    async with asyncio.timeout(EVENT_SECONDS_MAX):
        while quiet_turns < QUIET_TURNS:
            before = sum(len(answer.deliveries) for answer in answers)
            await asyncio.sleep(0.01)
            has_read_all = unread_bytes(port) == 0 and sum(len(answer.deliveries) for answer in answers) == before
            quiet_turns = quiet_turns + 1 if has_read_all else 0


def unread_bytes(port: int) -> int:
    """What was sent from a local port and is not read yet, on either side."""
    unread = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        to_send, to_read = (int(queue, 16) for queue in queues.split(":"))
        if local.endswith(f":{port:04X}"):
            unread += to_send
        if remote.endswith(f":{port:04X}"):
            unread += to_read
    return unread


def check_replay(replay: Answer, charged_microcredits: int) -> None:
    """Asked again, the request is answered with the charge that recovery made of it."""
    assert cause(replay.receipted) == "CRASH"
    assert replay.receipted.replayed
    assert replay.receipted.charged_microcredits == charged_microcredits
    assert replay.text == "", "the text died with the gateway"


def most_microcredits(
    prompt_tokens: int, model: WordModel, arrived: str, *, more_characters: int = DELIVERY_CHARACTERS
) -> int:
    """The most that may be captured when this text has arrived: the price of it with one delivery more.

    Counts of a growing text are not monotone, so the peak may lie before its end.
    """
    length = len(arrived)
    text = model.text(length + more_characters)
    ends = range(max(length - DELIVERY_CHARACTERS, 0), length + more_characters + 1)
    return max(cost(prompt_tokens, text[:end]) for end in ends)

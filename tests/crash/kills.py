"""A gateway process that is killed again and again under streams, and apps that know what arrived."""

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from app_client import Answer, App, cause, inference
from gateway_process import GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from open_gateway import audit
from word_model import WordModel

# The most of one delivery, the least that the configuration allows: so the bound of the loss is tight.
DELIVERY_CHARACTERS = 16

SUBSCRIBERS = ("alice", "bob")
STREAMS_A_SUBSCRIBER = 4
MICROCREDITS = 1_000_000_000

# A kill comes within this time after the streams begin: before the first token, between two, and after the last.
LIFE_SECONDS_MAX = 0.6


@dataclass
class Figures:
    """What was seen so far."""

    kills: int = 0
    streams: int = 0
    receipts: int = 0  # that had arrived
    recovered: int = 0  # streams charged by recovery
    uncharged: int = 0  # streams that were never admitted
    arrived_microcredits: int = 0
    charged_microcredits: int = 0
    excess_microcredits_max: int = 0  # charged beyond what arrived, the most of any stream


class Killed:
    """One gateway, one store, and what every stream of every life of the gateway got."""

    def __init__(self, folder: Path, model: WordModel, seed: int) -> None:
        self._folder = folder
        self._model = model
        self._chance = random.Random(seed)
        self._keys: dict[str, str] = {}
        self._seen: dict[str, int] = {}  # what each request was charged when that was first looked at
        self.figures = Figures()
        self.gateway = GatewayProcess(folder)

    async def open(self) -> None:
        """Wallets, configuration, and the first start."""
        self._keys = await open_wallets(self._folder / "ledger.db", dict.fromkeys(SUBSCRIBERS, MICROCREDITS))
        write_config(self._folder, openai_backend(self._model.url), delivery_characters_max=DELIVERY_CHARACTERS)
        await asyncio.to_thread(self.gateway.start)

    async def round(self) -> None:
        """Streams, a kill at any moment, a start on the same file, and the books."""
        answers = await self._killed_streams()
        await asyncio.to_thread(self.gateway.start)
        assert self.gateway.books.open_reservations() == 0
        self._check(answers)
        await audit(self.gateway.books.store)

    async def close(self) -> None:
        """Stop it as an operator does, and let the command verify the books."""
        await asyncio.to_thread(self.gateway.stop)
        await asyncio.to_thread(verify, self._folder)

    async def _killed_streams(self) -> dict[str, Answer]:
        figures, answers = self.figures, dict[str, Answer]()
        async with AsyncExitStack() as apps:
            for subscriber_id in SUBSCRIBERS:
                app = await apps.enter_async_context(App(self.gateway.port, self._keys[subscriber_id]))
                for place in range(STREAMS_A_SUBSCRIBER):
                    request_id = f"{figures.kills}-{subscriber_id}-{place}"
                    tokens_max = self._chance.choice((8, 1_800))
                    answers[request_id] = app.stream(inference(request_id, max_completion_tokens=tokens_max))
            await asyncio.sleep(self._chance.random() * LIFE_SECONDS_MAX)
            await asyncio.to_thread(self.gateway.kill)
            for answer in answers.values():
                await answer.ended()
        figures.kills += 1
        figures.streams += len(answers)
        return answers

    def _check(self, answers: dict[str, Answer]) -> None:
        charges = self.gateway.books.charges()
        assert all(charges[request_id][0] == charged for request_id, charged in self._seen.items()), "a charge changed"
        for request_id, answer in answers.items():
            if request_id not in charges:
                self._check_uncharged(answer)
                continue
            charged_microcredits, close_cause = charges[request_id]
            if answer.receipt is not None:
                self.figures.receipts += 1
                assert answer.receipt.charged_microcredits == charged_microcredits
                assert close_cause == cause(answer.receipt) == "FINISHED"
            else:
                self.figures.recovered += close_cause == "CRASH"
            self._seen[request_id] = charged_microcredits
            self._check_covered(answer, charged_microcredits, close_cause)

    def _check_uncharged(self, answer: Answer) -> None:
        assert answer.admission is None, "an admitted stream, whose prompt was captured, has no charge"
        assert answer.text == ""
        self.figures.uncharged += 1

    def _check_covered(self, answer: Answer, charged_microcredits: int, close_cause: str) -> None:
        """Arrived <= captured, and the difference is one delivery at most."""
        if answer.admission is None:
            assert answer.text == ""
            return
        prompt_tokens = answer.admission.prompt_tokens
        arrived_microcredits = cost(prompt_tokens, answer.text)
        assert arrived_microcredits <= charged_microcredits, (close_cause, answer.text)
        # A receipt that did not arrive is of a stream that ended: its last delivery is what is missing.
        assert charged_microcredits <= most_microcredits(prompt_tokens, self._model, answer.text), close_cause
        figures = self.figures
        figures.arrived_microcredits += arrived_microcredits
        figures.charged_microcredits += charged_microcredits
        excess_microcredits = charged_microcredits - arrived_microcredits
        figures.excess_microcredits_max = max(figures.excess_microcredits_max, excess_microcredits)


def most_microcredits(prompt_tokens: int, model: WordModel, arrived: str) -> int:
    """The most that may be captured when this text has arrived: the price of it with one delivery more.

    Counts of a growing text are not monotone, so the peak may lie before its end.
    """
    length = len(arrived)
    text = model.text(length + DELIVERY_CHARACTERS)
    ends = range(max(length - DELIVERY_CHARACTERS, 0), length + DELIVERY_CHARACTERS + 1)
    return max(cost(prompt_tokens, text[:end]) for end in ends)

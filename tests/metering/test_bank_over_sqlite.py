"""Thousands of requests of one wallet, through the use case and onto a disk; their answers may be lost (L2, L3, L4)."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from at_once import at_once
from ledger_rows import differences
from metering_world import CARD, STOP, World, content, count_words, request, usage

from metergate.core.errors import InsufficientCredit, RequestInProgress
from metergate.core.inference import Delta, InferenceRequest
from metergate.core.operations import Capture, Captured, Replayed, Reserve, Reserved, Settle, Settled
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission, Receipt
from metergate.core.rows import Charge
from metergate.metering.limits import Limits
from metergate.metering.use_case import Metering
from metergate.ports import ChargeFilter
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.telemetry.fan_out import FanOut

PIECES = ("The str", "aigh", "t road", " is long")
TEXT = "".join(PIECES)
PROMPT_TOKENS = 3 + count_words("what is it")
COST = rate_ceil(usage(PROMPT_TOKENS, TEXT), CARD)

PAID, ASKED, AT_ONCE = 500, 1_500, 100


@dataclass
class App:
    """What one stream got."""

    text: str = ""
    receipts: list[Receipt] = field(default_factory=list)

    async def admit(self, admission: Admission) -> None:
        await asyncio.sleep(0)

    async def deliver(self, delta: Delta) -> None:
        self.text += delta.content
        await asyncio.sleep(0)

    async def receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)
        await asyncio.sleep(0)


class TellingStore(SqliteLedgerStore):
    """Tells of what it acknowledged before anybody can act on it."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.acknowledged: Callable[[str, str], None] = lambda verb, request_id: None
        self._request_ids: dict[str, str] = {}  # by reservation id

    async def reserve(self, operation: Reserve, *, is_urgent: bool = True) -> Reserved | Replayed:
        self._request_ids[operation.reservation_id] = operation.request_id
        outcome = await super().reserve(operation, is_urgent=is_urgent)
        self.acknowledged("reserve", operation.request_id)
        return outcome

    async def capture(self, operation: Capture) -> Captured:
        outcome = await super().capture(operation)
        self.acknowledged("capture", self._request_ids[operation.reservation_id])
        return outcome

    async def settle(self, operation: Settle) -> Settled:
        outcome = await super().settle(operation)
        self.acknowledged("settle", self._request_ids[operation.reservation_id])
        return outcome


class Bank:
    """A wallet on a disk, and the use case before it."""

    def __init__(self, world: World, store: TellingStore) -> None:
        self._world = world
        self.store = store
        self.metering = Metering(
            ledger=store,
            offering=world.offering(world.pool),
            clock=world.clock,
            new_id=world.new_id,
            monotonic=asyncio.get_running_loop().time,
            limits=Limits(),
            observer=FanOut(()),
        )

    async def request(self, asked: InferenceRequest, *, streams: bool) -> tuple[str, Receipt]:
        """Ask once; the text, "" of a replay whose text is gone, and the receipt."""
        if streams:
            app = App()
            await self.metering.stream(self._world.caller, asked, app, time_left_seconds=None)
            return app.text, app.receipts[0]
        completion = await self.metering.complete(self._world.caller, asked, time_left_seconds=None)
        text = completion.message.text() if completion.message is not None else ""
        return text, completion.receipt

    async def charges(self) -> dict[str, Charge]:
        """By request id; more than one of a request is an error."""
        page = await self.store.list_charges("subscriber-1", ChargeFilter(), cursor=None, size=100_000)
        by_request = {charge.request_id: charge for charge in page.rows}
        assert len(by_request) == len(page.rows), "a request has two charges"
        return by_request

    async def available(self) -> int:
        """What is left; nothing may be set aside any more."""
        balance = await self.store.balance("subscriber-1", None, self._world.clock.now_us())
        assert balance.reserved_microcredits == 0
        return balance.available_microcredits


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    world = World([*content(*PIECES), STOP])
    store = await TellingStore.open(tmp_path / "ledger.db", clock=world.clock, owner_id="gateway-1", create=True)
    world.ledger = store  # type: ignore[assignment] # the world's own is in memory
    await store.add_rate_cards([CARD])
    await world.fund(PAID * COST)
    opened = Bank(world, store)
    yield opened
    assert await differences(store) == []
    await store.close()


async def test_a_wallet_of_so_many_answers_pays_exactly_so_many(bank: Bank) -> None:
    served = 0

    async def ask(number: int) -> None:
        nonlocal served
        asked = request(request_id=f"request-{number}", max_completion_tokens=count_words(TEXT))
        with suppress(InsufficientCredit):
            text, receipt = await bank.request(asked, streams=number % 2 == 0)
            assert (text, receipt.charged_microcredits) == (TEXT, COST)
            served += 1

    await at_once(ask, count=ASKED, workers=AT_ONCE)
    assert served == PAID
    assert [charge.charged_microcredits for charge in (await bank.charges()).values()] == [COST] * PAID
    assert await bank.available() == 0


async def test_apps_that_lose_answers_and_ask_again_pay_each_request_once(bank: Bank) -> None:
    chance = random.Random(20261124)
    told: dict[str, Receipt] = {}
    leaving: dict[str, tuple[str, asyncio.Task[tuple[str, Receipt]]]] = {}  # by request id: when, and who
    replays = 0

    def acknowledged(verb: str, request_id: str) -> None:
        if request_id in leaving and leaving[request_id][0] == verb:
            leaving.pop(request_id)[1].cancel()

    bank.store.acknowledged = acknowledged

    async def insist(number: int) -> None:
        nonlocal replays
        asked = request(request_id=f"request-{number}", max_completion_tokens=chance.randrange(1, 30))
        while True:
            asking = asyncio.create_task(bank.request(asked, streams=chance.random() < 0.5))
            if chance.random() < 0.4:  # the app goes away at this moment, if it comes, and asks again
                leaving[asked.request_id] = chance.choice(("reserve", "capture", "settle")), asking
            try:
                _, receipt = await asking
            except asyncio.CancelledError:
                continue
            except RequestInProgress:  # what it left behind is being settled
                await asyncio.sleep(0.001)
                continue
            except InsufficientCredit:
                return
            finally:
                leaving.pop(asked.request_id, None)
            told[asked.request_id] = receipt
            replays += receipt.replayed
            return

    await at_once(insist, count=ASKED, workers=AT_ONCE)
    await bank.metering.settled()
    charges = await bank.charges()
    for request_id, receipt in told.items():
        assert charges[request_id].charged_microcredits == receipt.charged_microcredits
        assert charges[request_id].charge_id == receipt.charge_id
    assert replays > 20, "hardly an answer was lost after its charge"
    charged = sum(charge.charged_microcredits for charge in charges.values())
    assert await bank.available() == PAID * COST - charged

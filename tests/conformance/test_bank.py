"""Many requests at once on few wallets: none spends what another has, and no microcredit is lost or made (L2, L3, L4).

An app may stop waiting at any moment and ask the same again: a lost acknowledgement is nothing else.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from at_once import at_once
from ledger_rows import CARD, NOW_US, a_capture, a_consent, a_grant, a_reserve, a_settle, a_wallet, available

from metergate.core.errors import CapReached, InsufficientCredit
from metergate.core.operations import CaptureStatus, Reserved
from metergate.core.rows import Charge
from metergate.ports import ChargeFilter, LedgerStore

Outcome = TypeVar("Outcome")

FIXED_COST = 7
PAID = 300
ASKED = 2_000
AT_ONCE = 64


async def insisting(chance: random.Random, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Ask; with luck the answer is lost, and the same is asked again."""
    while chance.random() < 0.3:
        asking = asyncio.ensure_future(ask())
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        asking.cancel()
        try:
            return await asking
        except asyncio.CancelledError:
            continue
    return await ask()


@pytest.mark.parametrize("loses_answers", [False, True])
async def test_a_wallet_of_so_many_requests_pays_exactly_so_many(store: LedgerStore, *, loses_answers: bool) -> None:
    chance = random.Random(20261124)
    await store.add_rate_cards([CARD])
    await store.add_subscriber(a_wallet())
    await store.add_grant(a_grant(amount=PAID * FIXED_COST))
    await store.add_authorization(a_consent())
    refused = 0

    async def request(number: int) -> None:
        nonlocal refused
        operation = a_reserve(
            f"res-{number}", minimum_microcredits=FIXED_COST, wanted_microcredits=FIXED_COST, capture_microcredits=0
        )
        settling = a_settle(FIXED_COST, f"res-{number}", captured=FIXED_COST)
        try:
            await (insisting(chance, lambda: store.reserve(operation)) if loses_answers else store.reserve(operation))
        except InsufficientCredit:
            refused += 1
            return
        await (insisting(chance, lambda: store.settle(settling)) if loses_answers else store.settle(settling))

    await at_once(request, count=ASKED, workers=AT_ONCE)
    charges = await all_charges(store, "alice")
    assert [charge.charged_microcredits for charge in charges] == [FIXED_COST] * PAID
    assert refused == ASKED - PAID
    assert await available(store) == 0


async def test_whatever_requests_cost_no_microcredit_is_lost_doubled_or_negative(store: LedgerStore) -> None:
    chance = random.Random(20261125)
    wallets, granted = ["alice", "bob", "carol"], 60_000
    await store.add_rate_cards([CARD])
    for subscriber_id in wallets:
        await store.add_subscriber(a_wallet(subscriber_id))
        await store.add_authorization(a_consent(f"auth-{subscriber_id}", subscriber_id, cap_microcredits=55_000))
        for grant in range(3):
            await store.add_grant(a_grant(f"grant-{grant}", granted // 3, subscriber_id, priority=grant))
    charged: dict[str, int] = dict.fromkeys(wallets, 0)

    async def request(number: int) -> None:
        subscriber_id = chance.choice(wallets)
        minimum = chance.randrange(10, 120)
        operation = a_reserve(
            f"res-{number}",
            subscriber_id=subscriber_id,
            authorization_id=f"auth-{subscriber_id}",
            minimum_microcredits=minimum,
            wanted_microcredits=minimum + chance.randrange(200),
        )
        try:
            outcome = await insisting(chance, lambda: store.reserve(operation))
        except (InsufficientCredit, CapReached):
            return
        assert isinstance(outcome, Reserved)
        captured, delivered = outcome.reservation.captured_microcredits, 0
        for _ in range(chance.randrange(4)):
            target = captured + chance.randrange(150)
            capture = a_capture(
                target,
                f"res-{number}",
                subscriber_id=subscriber_id,
                wanted_microcredits=target + chance.randrange(100),
                delivered_microcredits=delivered,
            )
            answer = await insisting(chance, lambda: store.capture(capture))  # noqa: B023 - awaited within the turn
            assert answer.status is CaptureStatus.OPEN
            assert captured <= answer.captured_microcredits <= answer.reserved_microcredits
            delivered, captured = captured, answer.captured_microcredits
        cost = None if chance.random() < 0.1 and not delivered else chance.randrange(captured + 1)
        settling = a_settle(cost, f"res-{number}", subscriber_id=subscriber_id)
        settled = await insisting(chance, lambda: store.settle(settling))
        assert (None if settled.charge is None else settled.charge.charged_microcredits) == cost
        charged[subscriber_id] += cost or 0

    await at_once(request, count=ASKED, workers=AT_ONCE)
    for subscriber_id in wallets:
        charges = await all_charges(store, subscriber_id)
        assert sum(charge.charged_microcredits for charge in charges) == charged[subscriber_id]
        assert await available(store, NOW_US, subscriber_id) == granted - charged[subscriber_id]
    assert min(charged.values()) > granted // 2, "the wallets were hardly used"


async def all_charges(store: LedgerStore, subscriber_id: str) -> list[Charge]:
    charges: list[Charge] = []
    cursor: str | None = None
    while True:
        page = await store.list_charges(subscriber_id, ChargeFilter(), cursor=cursor, size=500)
        charges += page.rows
        cursor = page.next_cursor
        if cursor is None:
            return charges

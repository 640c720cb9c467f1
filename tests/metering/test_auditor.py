"""The running audit goes round through all subscribers, a few at a time, and finds what another program changed."""

from dataclasses import replace

import pytest
from ledger_rows import a_consent, a_grant, a_wallet
from metering_world import CARD, STOP, World, content

from metergate.core.audit import DifferenceKind
from metergate.core.errors import LedgerDiffers
from metergate.metering.auditor import Auditor
from metergate.ports import LedgerStore

FUNDS = 10_000


class Seconds:
    """A clock on which every look takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def auditor(ledger: LedgerStore, sample: int) -> Auditor:
    made = Auditor(ledger, Seconds(), sample_subscribers=sample, interval_seconds=1.0, told=lambda audited: None)
    made._after = None  # where it begins is random
    return made


async def crowd() -> World:
    world = await World([*content("one two"), STOP]).fund(FUNDS)
    for name in ("a", "b", "c", "d"):
        await world.ledger.add_subscriber(a_wallet(name))
        await world.ledger.add_authorization(a_consent(f"auth-{name}", name))
        await world.ledger.add_grant(a_grant("grant-1", 10, name))
    return world


async def test_it_goes_round_through_all_subscribers() -> None:
    watching = auditor((await crowd()).ledger, 2)
    rounds = [await watching.look() for _ in range(6)]
    assert [audited.subscribers for audited in rounds] == [2, 2, 1, 2, 2, 1]
    assert {audited.differences for audited in rounds} == {()}


async def test_it_begins_anywhere() -> None:
    ledger = (await crowd()).ledger
    begins = {
        Auditor(ledger, Seconds(), sample_subscribers=1, interval_seconds=1.0, told=lambda audited: None)._after
        for _ in range(100)
    }
    assert len(begins) > 5


async def test_it_says_what_differs_once_a_round_and_sees_the_accounts() -> None:
    world = await crowd()
    await world.ledger.add_rate_cards([CARD])
    await world.stream()
    await world.settled()
    wallet = world.ledger.books.wallets.rows["c"]
    world.ledger.books.wallets.rows["c"] = replace(wallet, sequence=7)
    watching = auditor(world.ledger, 9)
    for audited in [await watching.look() for _ in range(2)]:
        assert (audited.subscribers, audited.different) == (5, 1)
        assert [(one.kind, one.subscriber_id) for one in audited.differences] == [(DifferenceKind.SEQUENCE, "c")]
        assert sum(row.balance_microcredits for row in audited.account_balances.values()) == 0
        assert audited.seconds > 0


async def test_nothing_is_admitted_once_admissions_were_stopped() -> None:
    world = await crowd()
    world.metering.stop_admissions()
    with pytest.raises(LedgerDiffers):
        await world.stream()
    assert world.ledger.open_reservations() == []
    assert await world.available() == FUNDS

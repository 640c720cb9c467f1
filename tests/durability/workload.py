"""Work on a store that tells what was acknowledged, and what must be found of it afterwards."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fakes import FakeClock
from ledger_rows import CARD, NOW_US, a_capture, a_consent, a_grant, a_reserve, a_settle, a_wallet, differences

from metergate.core.errors import ReservationNotOwned, StoreUnavailable
from metergate.core.operations import CaptureStatus, Reserved
from metergate.core.rows import Charge, Grant
from metergate.ports import ChargeFilter, LedgerStore

Outcome = TypeVar("Outcome")

STREAMS_AT_ONCE = 4
AMOUNT = 100_000


@dataclass(frozen=True, slots=True)
class Granted:
    """A grant was acknowledged."""

    grant_id: str


@dataclass(frozen=True, slots=True)
class Debited:
    """A capture was acknowledged: it may have been delivered."""

    reservation_id: str
    captured_microcredits: int


@dataclass(frozen=True, slots=True)
class Charged:
    """A settlement was acknowledged: it may have been receipted."""

    reservation_id: str
    charged_microcredits: int


Fact = Granted | Debited | Charged
Acknowledge = Callable[[Fact], None]


class Work:
    """Rounds of streams at once, of one subscriber; the same for the same seed."""

    def __init__(self, seed: int, acknowledged: Acknowledge) -> None:
        self._chance = random.Random(seed)
        self._acknowledged = acknowledged
        self._numbers = 0

    async def set_up(self, store: LedgerStore) -> None:
        """A wallet with credit."""
        await store.add_rate_cards([CARD])
        await store.add_subscriber(a_wallet())
        await store.add_authorization(a_consent())
        await self._grant(store, "first")

    async def rounds(self, store: LedgerStore, count: int) -> int:
        """Do work; return how many operations failed because the store did. Nothing else may be refused."""
        failed = 0
        for _ in range(count):
            self._numbers += 1
            names = [f"res-{self._numbers}-{place}" for place in range(STREAMS_AT_ONCE)]
            work: list[Awaitable[bool]] = [self._stream(store, name) for name in names]
            if self._chance.random() < 0.3:
                work.append(trying(self._grant(store, f"grant-{self._numbers}")))
            failed += sum(not is_done for is_done in await asyncio.gather(*work))
        return failed

    async def _grant(self, store: LedgerStore, grant_id: str) -> None:
        await store.add_grant(a_grant(grant_id, AMOUNT))
        self._acknowledged(Granted(grant_id))

    async def _stream(self, store: LedgerStore, name: str) -> bool:
        """A stream of a few deliveries; False when the store failed it."""
        targets = [10 + 40 * number for number in range(1, self._chance.randrange(2, 5))]
        ends = self._chance.random() < 0.8  # else it is left open, as by a process that dies
        return await trying(self._deliver(store, name, targets, ends=ends))

    async def _deliver(self, store: LedgerStore, name: str, targets: list[int], *, ends: bool) -> None:
        owner = store.owner
        outcome = await store.reserve(a_reserve(name, owner=owner))
        assert isinstance(outcome, Reserved)
        self._acknowledged(Debited(name, 9))
        delivered = 0
        for target in targets:
            capture = a_capture(target, name, owner=owner, delivered_microcredits=delivered)
            captured = await store.capture(capture)
            if captured.status is not CaptureStatus.OPEN:
                return  # the store was opened again, and has settled it
            assert captured.captured_microcredits == target
            self._acknowledged(Debited(name, target))
            delivered = target
        if ends:
            settled = await store.settle(a_settle(targets[-1] - 3, name, owner=owner))
            assert settled.charge is not None
            self._acknowledged(Charged(name, settled.charge.charged_microcredits))


async def trying(work: Awaitable[None]) -> bool:
    """Whether the work was done: False when the store failed, or had been opened again."""
    try:
        await work
    except (StoreUnavailable, ReservationNotOwned):
        return False
    return True


async def lost(store: LedgerStore, facts: list[Fact]) -> list[Fact]:
    """Which acknowledged facts are not found in a store whose open reservations were recovered."""
    charges = {charge.reservation_id: charge for charge in await all_charges(store)}
    grants = {grant.grant_id for grant in await all_grants(store)}
    return [fact for fact in facts if not _is_kept(fact, charges, grants)]


def _is_kept(fact: Fact, charges: dict[str, Charge], grants: set[str]) -> bool:
    match fact:
        case Granted():
            return fact.grant_id in grants
        case Debited():
            charge = charges.get(fact.reservation_id)
            return charge is not None and charge.captured_microcredits >= fact.captured_microcredits
        case Charged():
            charge = charges.get(fact.reservation_id)
            return charge is not None and charge.charged_microcredits == fact.charged_microcredits


async def check_books(store: LedgerStore, facts: list[Fact]) -> None:
    """Nothing acknowledged is lost, nothing is open, and everything adds up."""
    assert await lost(store, facts) == []
    assert (await store.balance("alice", None, NOW_US)).reserved_microcredits == 0
    assert await differences(store) == []


async def all_charges(store: LedgerStore) -> list[Charge]:
    """Every charge of the subscriber."""
    return list((await store.list_charges("alice", ChargeFilter(), cursor=None, size=100_000)).rows)


async def all_grants(store: LedgerStore) -> list[Grant]:
    """Every grant of the subscriber."""
    return list((await store.list_grants("alice", cursor=None, size=100_000)).rows)


def a_clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock(NOW_US)

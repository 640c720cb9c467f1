"""An operator who corrects a wallet while its requests run, loses the answers, and asks again.

Refunds, adjustments, reversals, suspensions and top-ups; some of amounts that are too large, of charges that are not
there.
"""

import asyncio
from collections import defaultdict
from dataclasses import replace

from metergate.core.batches import Operation, Outcome
from metergate.core.errors import (
    AlreadyReversed,
    IdConflict,
    InsufficientCredit,
    RefundExceedsCharge,
    RequestInvalid,
    ResourceNotFound,
    StoreUnavailable,
)
from metergate.core.operations import (
    AddGrant,
    Adjust,
    Capture,
    Captured,
    Refund,
    Reserve,
    Reserved,
    Reverse,
    SetWalletState,
)
from metergate.core.rows import Correction, Grant, GrantSource, WalletState
from simulation.luck import Luck, require
from simulation.unreliable_ledger import UnreliableLedger

CORRECTIONS_MAX = 12
SUBSCRIBER = "subscriber-1"

# More often what gives, or lets go on, than what takes and stops: or few requests would come to anything.
KINDS = ("refund",) * 5 + ("give",) * 2 + ("take",) * 2 + ("stop", "reverse") + ("go on",) * 3 + ("top up",) * 2

# What a correction may be refused for here; that an id was used for something else is checked where it happens.
REFUSALS = (
    AlreadyReversed,
    InsufficientCredit,
    RefundExceedsCharge,
    RequestInvalid,
    ResourceNotFound,
    StoreUnavailable,
)

OTHERWISE = "meant otherwise"

Asked = Refund | Adjust | Reverse | SetWalletState | AddGrant


class Operator:
    """One operator's day. What was asked under each id, and what was answered, is checked at the end."""

    def __init__(self, luck: Luck, ledger: UnreliableLedger) -> None:
        self._luck = luck
        self._ledger = ledger
        self._asked: list[Asked] = []
        self._answers: defaultdict[str, list[Correction]] = defaultdict(list)
        self.met: set[str] = set()  # every kind of answer

    async def run(self) -> None:
        """Correct now and then; each may be given up at any await, and asked for again."""
        luck = self._luck
        for number in range(luck.random.randrange(CORRECTIONS_MAX)):
            await luck.pause(6.0)
            asked = self._again() if self._asked and luck.happens(0.3) else self._new(number)
            call = asyncio.create_task(self._ask(asked))
            if luck.happens(0.3):
                await luck.some_time()
                call.cancel()
            await asyncio.wait([call])
            if not call.cancelled():
                call.result()

    def _again(self) -> Asked:
        before = self._luck.random.choice(self._asked)
        if isinstance(before, AddGrant) or not self._luck.happens(0.1):
            return before
        return replace(before, reason=OTHERWISE)

    def _new(self, number: int) -> Asked:
        luck, now_us = self._luck, self._ledger.clock.now_us()
        kind = luck.random.choice(KINDS)
        name = f"{kind} {number}".replace(" ", "-")
        amount = luck.random.randrange(1, 400)
        shared = {
            "correction_id": name,
            "subscriber_id": SUBSCRIBER,
            "reason": "the simulation",
            "actor": "the operator",
        }
        asked: Asked
        match kind:
            case "refund":
                charges = [*self._ledger.books.charges.rows, "of-nobody"]
                charge_id = luck.random.choice(charges)
                charge = self._ledger.books.charges.rows.get(charge_id)
                amount = luck.random.randrange(1, (charge.charged_microcredits if charge else 0) + 2)
                asked = Refund(
                    charge_id=charge_id, amount_microcredits=amount, grant_seconds=900, now_us=now_us, **shared
                )
            case "give":
                seconds = luck.random.choice((None, 60))
                asked = Adjust(amount_microcredits=amount, grant_seconds=seconds, now_us=now_us, **shared)
            case "take":
                asked = Adjust(amount_microcredits=-amount, grant_seconds=None, now_us=now_us, **shared)
            case "reverse":
                grants = [key[1] for key in self._ledger.books.grants.rows]
                asked = Reverse(grant_id=luck.random.choice(grants), now_us=now_us, **shared)
            case "top up":
                asked = AddGrant(grant=_top_up(name, amount, now_us))
            case _:
                state = WalletState.SUSPENDED if kind == "stop" else WalletState.ACTIVE
                asked = SetWalletState(state=state, now_us=now_us, **shared)
        self._asked.append(asked)
        return asked

    async def _ask(self, asked: Asked) -> None:
        name = asked.grant.grant_id if isinstance(asked, AddGrant) else asked.correction_id
        outcome = "done"
        try:
            answer = await self._send(asked)
            if isinstance(answer, Correction) and not isinstance(asked, AddGrant):
                require(answer.reason == asked.reason, f"{asked} was answered with {answer}")
                self._answers[name].append(answer)
        except IdConflict:
            outcome = "IdConflict"
            assert not isinstance(asked, AddGrant)
            row = self._ledger.books.corrections.rows.get((SUBSCRIBER, name))
            require(row is not None and row.reason != asked.reason, f"{asked} conflicts with {row}")
        except REFUSALS as exc:
            outcome = type(exc).__name__
        self.met.add(outcome)
        self._luck.note(f"{name} {outcome}")

    async def _send(self, asked: Asked) -> Correction | Grant:
        match asked:
            case AddGrant():
                return await self._ledger.add_grant(asked)
            case Refund():
                return await self._ledger.refund(asked)
            case Adjust():
                return await self._ledger.adjust(asked)
            case Reverse():
                return await self._ledger.reverse(asked)
            case SetWalletState():
                return await self._ledger.set_wallet_state(asked)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """L4: every answer under one id is the one row of it. What a suspension stops, it stops."""
        rows = self._ledger.books.corrections.rows
        for name, answers in self._answers.items():
            for answer in answers:
                require(rows[(SUBSCRIBER, name)] == answer, f"{name} was answered with {answer}")
        stopped = _Stopped()
        for operation, outcome in self._ledger.log:
            stopped.see(operation, outcome)


class _Stopped:
    """Follows a log of commits: nothing is reserved anew, and no reservation grows, while the wallet is suspended."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._corrections: set[str] = set()
        self._reserved: dict[str, int] = {}  # by reservation

    def see(self, operation: Operation, outcome: Outcome) -> None:
        match operation, outcome:
            case Reserve(), Reserved():
                self._see_amount(outcome.reservation.reservation_id, outcome.reservation.reserved_microcredits)
            case Capture(), Captured():
                self._see_amount(operation.reservation_id, outcome.reserved_microcredits)
            case _, Correction() if outcome.correction_id not in self._corrections:
                self._corrections.add(outcome.correction_id)
                if isinstance(operation, SetWalletState):
                    self._is_stopped = operation.state is WalletState.SUSPENDED
                self._is_stopped |= outcome.shortfall_microcredits > 0

    def _see_amount(self, reservation_id: str, reserved: int) -> None:
        grew = reserved > self._reserved.get(reservation_id, 0)
        require(not (grew and self._is_stopped), f"{reservation_id} of a suspended wallet grew to {reserved}")
        self._reserved[reservation_id] = reserved


def _top_up(name: str, amount: int, now_us: int) -> Grant:
    return Grant(
        grant_id=name,
        subscriber_id=SUBSCRIBER,
        source=GrantSource.TOP_UP,
        priority=5,
        amount_microcredits=amount,
        remaining_microcredits=amount,
        effective_time_us=now_us,
        expire_time_us=None,
        create_time_us=now_us,
    )

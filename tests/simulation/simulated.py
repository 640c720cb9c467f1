"""A gateway's use case, its ledger, apps and backends, all of whose luck comes from one seed.

What may go wrong, goes wrong: answers of the store come late, twice or never (before its commit and after it), backends
refuse, break off, hang and fail with defects, apps cancel, read slowly and ask again with the same id and with other
content, the process dies, and the wall clock jumps. What must hold is checked at each delivery and at the end.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import differences
from metering_world import CARD, World, count_words, pool_of, request, usage

from metergate.core.errors import BackendRejected, BackendUnavailable, MetergateError
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish, UsageReport
from metergate.core.ledger import Operation, Outcome
from metergate.core.operations import AddGrant, Captured, Reserved, Settled
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import Charge, FinishReason, Grant, GrantSource
from metergate.core.usage import TokenClass, Usage
from metergate.metering.limits import Limits
from metergate.metering.use_case import Metering
from metergate.telemetry.fan_out import FanOut

LIMITS = Limits(
    slice_tokens=4,
    delivery_characters_max=24,
    read_ahead_characters_max=64,
    first_token_seconds_max=5.0,
    between_tokens_seconds_max=2.0,
    request_seconds_max=20.0,
)

# Every word is one of these: one that costs 1 token, one that costs 3 when cut, one of another script.
WORDS = ("sea", "straight", "a", "understand", "的海", "elephant")
REQUESTS_MAX = 12
APPS_MAX = 5
HOUR_US = 3_600_000_000


class Broken(AssertionError):
    """A law did not hold."""


@dataclass
class Luck:
    """Everything random of a run, and what happened, in order."""

    random: random.Random
    trace: list[str] = field(default_factory=list)

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    async def pause(self, seconds_max: float) -> None:
        """Nothing, one turn of the loop, or a while."""
        match self.random.randrange(3):
            case 0:
                return
            case 1:
                await asyncio.sleep(0)
            case _:
                await asyncio.sleep(self.random.random() * seconds_max)

    def note(self, event: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {event}")


class UnreliableLedger(MemoryLedgerStore):
    """Its answers come late, twice, or not at all."""

    def __init__(self, luck: Luck, clock: FakeClock, fault_probability: float) -> None:
        super().__init__(clock=clock)
        self._luck = luck
        self._fault_probability = fault_probability
        self.has_failed = False
        self.is_reliable = True  # while the world is set up, and when it is looked at

    async def _run(self, operation: Operation) -> Outcome:
        if self.is_reliable:
            return await super()._run(operation)
        luck = self._luck
        await luck.pause(0.5)
        if luck.happens(self._fault_probability):
            self.has_failed = True
            self.fail_next(1, after_commit=luck.happens(0.5))
        epoch = self.owner.epoch
        outcome = await super()._run(operation)
        luck.note(f"{type(operation).__name__} {type(outcome).__name__}")
        if luck.happens(0.1):
            again = await super()._run(operation)
            if self.owner.epoch == epoch:  # else recovery may have closed it in between
                self._check_same(operation, outcome, again)
        await luck.pause(0.5)
        return outcome

    def _check_same(self, operation: Operation, first: Outcome, second: Outcome) -> None:
        """L4: the same operation twice changes nothing and is answered as it first was."""
        match first, second:
            case Reserved(), Reserved():
                is_same = first.reservation.reservation_id == second.reservation.reservation_id
            case Captured(), Captured():
                is_same = (first.status, first.captured_microcredits) == (second.status, second.captured_microcredits)
                # Between the two, others may have spent what the first could not have, or given back: only it may grow.
                is_same = is_same or second.captured_microcredits > first.captured_microcredits
            case Settled(), Settled():
                is_same = first.charge == second.charge
            case _:
                is_same = type(first) is type(second)
        if not is_same:
            raise Broken(f"{operation} was answered with {first}, then with {second}")


class UnreliableBackend:
    """Answers with words, most times."""

    def __init__(self, luck: Luck, backend_id: str) -> None:
        self.backend_id = backend_id
        self._luck = luck
        self.open_generations = 0

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        self.open_generations += 1
        try:
            async for event in self._answer(request):
                yield event
        finally:
            self.open_generations -= 1

    async def _answer(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        luck, text = self._luck, ""
        for number in range(luck.random.randrange(12)):
            await luck.pause(0.4)
            self._fail_perhaps(request.model_id)
            if luck.happens(0.01):
                await asyncio.sleep(30.0)  # longer than anybody waits
            words = " ".join(luck.random.choices(WORDS, k=luck.random.randrange(1, 5)))
            piece = words if number == 0 else luck.random.choice(("", " ")) + words
            text += piece
            yield Delta(content=piece)
        if luck.happens(0.05):
            return  # without a finish reason
        yield Finish(reason=FinishReason.STOP)
        if luck.happens(0.5):
            reported = luck.random.choice((0, count_words(text), 10_000))
            prompt = {TokenClass.PROMPT: luck.random.choice((0, 6, 9_999))}
            yield UsageReport(usage=Usage.of({**prompt, TokenClass.COMPLETION: reported}))

    def _fail_perhaps(self, model_id: str) -> None:
        if self._luck.happens(0.03):
            raise self._luck.random.choice(
                (
                    BackendUnavailable(model_id=model_id, problem="it broke"),
                    BackendRejected(model_id=model_id, problem="it refused"),
                    RuntimeError("a defect of the adapter"),
                )
            )

    async def is_up(self) -> bool:
        return True

    async def close(self) -> None:
        return None


class App:
    """The app's end of one stream: it keeps what it gets, and checks L1 at the instant of each delivery."""

    def __init__(self, luck: Luck, ledger: MemoryLedgerStore, request_id: str) -> None:
        self._luck = luck
        self._ledger = ledger
        self._request_id = request_id
        self._read_seconds_max = luck.random.choice((0.0, 0.1, 2.0))
        self.admission: Admission | None = None
        self.text = ""
        self.receipts: list[Receipt] = []

    async def admit(self, admission: Admission) -> None:
        self.admission = admission
        await self._luck.pause(self._read_seconds_max)

    async def deliver(self, delta: Delta) -> None:
        self.text += delta.content
        self._luck.note(f"{self._request_id} got {delta.content!r}")
        assert self.admission is not None
        reservation = self._ledger.books.reservations.rows[self.admission.reservation_id]
        cost = rate_ceil(usage(self.admission.prompt_tokens, self.text), CARD)
        if not cost <= reservation.captured_microcredits <= reservation.reserved_microcredits:
            raise Broken(f"{self._request_id} got {cost} microcredits of {reservation.captured_microcredits} captured")
        await self._luck.pause(self._read_seconds_max)

    async def receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)
        await self._luck.pause(self._read_seconds_max)


@dataclass
class Asked:
    """A request by its id: what was asked first, and every receipt of it."""

    text: str
    receipts: list[Receipt] = field(default_factory=list)


class Simulation:
    """One run. ``run`` raises Broken, or whatever else went wrong, with the seed's own trace in ``luck``."""

    def __init__(self, seed: int) -> None:
        self.luck = Luck(random.Random(seed))
        self.causes: set[CloseCause] = set()
        self._asked: dict[str, Asked] = {}
        self._streams: list[App] = []
        self._calls: dict[asyncio.Task[None], None] = {}  # in order; a set would be in another at each run
        self._was_left = False  # a process died, and left its reservations to recovery

    async def run(self) -> None:
        """Set up, let things happen, and check what must hold."""
        luck = self.luck
        self._backends = [UnreliableBackend(luck, f"backend-{number}") for number in (1, 2)]
        self._world = world = World(limits=LIMITS, backends=self._backends)
        world.ledger = self._ledger = UnreliableLedger(luck, world.clock, luck.random.choice((0.0, 0.02, 0.1)))
        world.metering = self._new_gateway()
        await self._ledger.add_rate_cards([CARD])
        cap = luck.random.choice((None, None, 2_000))
        await world.fund(luck.random.choice((200, 2_000, 20_000)), cap_microcredits=cap)
        await self._add_expiring_grant()
        self._ledger.is_reliable = False
        apps = [self._app(number) for number in range(luck.random.randrange(1, APPS_MAX + 1))]
        await asyncio.gather(*apps, self._trouble())
        await self._end()

    def _new_gateway(self) -> Metering:
        world = self._world
        return Metering(
            ledger=self._ledger,
            offering=world.offering(pool_of(self._backends, chance=self.luck.random.random)),
            clock=world.clock,
            new_id=world.new_id,
            monotonic=asyncio.get_running_loop().time,
            limits=LIMITS,
            observer=FanOut(()),
        )

    async def _add_expiring_grant(self) -> None:
        now_us = self._world.clock.now_us()
        grant = Grant(
            grant_id="gift",
            subscriber_id="subscriber-1",
            source=GrantSource.GIFT,
            priority=0,
            amount_microcredits=1_000,
            remaining_microcredits=1_000,
            effective_time_us=now_us,
            expire_time_us=now_us + HOUR_US,
            create_time_us=now_us,
        )
        await self._ledger.add_grant(AddGrant(grant=grant))

    # --- what happens -----------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        """Clocks jump, processes die, and at the end perhaps the gateway is told to stop."""
        luck = self.luck
        for _ in range(luck.random.randrange(4)):
            await asyncio.sleep(luck.random.random() * 10)
            if luck.happens(0.5):
                self._world.clock.advance(luck.random.randrange(-HOUR_US, 2 * HOUR_US))
                luck.note("the wall clock jumps")
            else:
                self._die()
        if luck.happens(0.2):
            await asyncio.sleep(luck.random.random() * 10)
            await self._world.metering.drain(luck.random.random() * 3)
            luck.note("drained")

    def _die(self) -> None:
        """The process is gone: another one recovers its reservations, and its apps are cut off."""
        self.luck.note("the process dies")
        self._ledger.restart()
        self._world.metering = self._new_gateway()
        self._was_left = True
        for call in self._calls:
            call.cancel()

    async def _app(self, number: int) -> None:
        luck = self.luck
        for turn in range(luck.random.randrange(1, REQUESTS_MAX)):
            await luck.pause(3.0)
            request_id = f"{number}-{turn}"
            if self._asked and luck.happens(0.3):
                request_id = luck.random.choice(sorted(self._asked))
            asked = self._asked.setdefault(request_id, Asked(text=f"of the {luck.random.choice(WORDS)}"))
            text = "something else" if luck.happens(0.05) else asked.text
            call = asyncio.create_task(self._call(request_id, asked, text))
            self._calls[call] = None
            call.add_done_callback(self._calls.pop)
            if luck.happens(0.3):
                await self._some_time()
                call.cancel()
            await asyncio.wait([call])
            if not call.cancelled():
                call.result()

    async def _some_time(self) -> None:
        """A while, or some turns of the loop: so that a cancel hits every await, those too that take no time."""
        if self.luck.happens(0.5):
            await asyncio.sleep(self.luck.random.random() * 3)
        else:
            for _ in range(self.luck.random.randrange(60)):
                await asyncio.sleep(0)

    async def _call(self, request_id: str, asked: Asked, text: str) -> None:
        luck, metering = self.luck, self._world.metering
        limit = luck.random.choice((None, None, 60, 200)) if asked.text == text else None
        wanted = request(text, request_id, max_completion_tokens=luck.random.choice((None, 3, 20)))
        wanted = replace(wanted, credit_limit_microcredits=limit)
        outcome = "ended well"
        try:
            if luck.happens(0.7):
                app = App(luck, self._ledger, request_id)
                self._streams.append(app)
                await metering.stream(self._world.caller, wanted, app, time_left_seconds=None)
                asked.receipts += app.receipts
            else:
                completion = await metering.complete(self._world.caller, wanted, time_left_seconds=None)
                asked.receipts.append(completion.receipt)
        except MetergateError as exc:
            outcome = type(exc).__name__
        except RuntimeError as exc:  # the defect of an adapter, which the edge would turn into a status
            outcome = str(exc)
        luck.note(f"{request_id} {outcome}")

    # --- what must hold ---------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        await self._world.metering.settled()
        await asyncio.sleep(60.0)  # for what a dead process left running here
        if not self._was_left and not self._ledger.has_failed:
            _require(not self._ledger.open_reservations(), "a reservation is open, and nobody died")
        self._ledger.is_reliable = True
        self._ledger.restart()  # what a failed store left to recovery
        _require(not self._ledger.open_reservations(), "a reservation is open")
        _require(not any(backend.open_generations for backend in self._backends), "a backend generates for nobody")
        _require(not await differences(self._ledger), "the books do not add up")
        charges = {charge.charge_id: charge for charge in self._ledger.books.charges.rows.values()}
        self.causes = {row.close_cause for row in self._ledger.books.reservations.rows.values() if row.close_cause}
        for asked in self._asked.values():
            self._check_receipts(asked, charges)
        by_reservation = {charge.reservation_id: charge for charge in charges.values()}
        for app in self._streams:
            if app.admission is not None and not any(receipt.replayed for receipt in app.receipts):
                self._check_delivered(app, app.admission, by_reservation.get(app.admission.reservation_id))

    def _check_receipts(self, asked: Asked, charges: dict[str, Charge]) -> None:
        """L4: every receipt of a request that was charged tells of the same charge, and that is in the books."""
        told = {receipt.charge_id for receipt in asked.receipts if receipt.charge_id is not None}
        _require(len(told) <= 1, f"one request has the charges {told}")
        for receipt in asked.receipts:
            if receipt.charge_id is not None:
                charge = charges[receipt.charge_id]
                _require(charge.charged_microcredits == receipt.charged_microcredits, f"{receipt} is not {charge}")

    def _check_delivered(self, app: App, admission: Admission, charge: Charge | None) -> None:
        """L1, L5, L7: what arrived is charged exactly; after a crash at least, with one delivery more at most."""
        cost = rate_ceil(usage(admission.prompt_tokens, app.text), CARD)
        if charge is None:
            _require(not app.text, f"{app.text!r} was delivered for nothing")
        elif charge.close_cause is CloseCause.CRASH:
            one_more = rate_ceil(usage(admission.prompt_tokens, app.text + "x " * LIMITS.delivery_characters_max), CARD)
            _require(cost <= charge.charged_microcredits <= one_more, f"{cost} delivered: {charge}")
        elif app.text:
            _require(cost == charge.charged_microcredits, f"{cost} delivered: {charge}")


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise Broken(problem)

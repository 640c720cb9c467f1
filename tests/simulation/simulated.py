"""A gateway's use case, its ledger, apps, an operator and backends, all of whose luck comes from one seed.

What may go wrong, goes wrong: answers of the store come late, twice or never (before its commit and after it), backends
refuse, break off, hang and fail with defects, the content policy blocks, hangs and fails, apps cancel, read slowly, set
deadlines and ask again with the same id and with other content, an operator corrects the wallet under their requests,
the process dies, and the wall clock jumps. What must hold is checked at each delivery and commit, and at the end.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ledger_rows import differences
from metering_world import CARD, WordTokenizer, World, count_words, pool_of, request, usage

from metergate.core.catalog import Catalog, ModelTask
from metergate.core.embedding import EmbeddingRequest
from metergate.core.errors import MetergateError
from metergate.core.operations import AddGrant
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission, Completion, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import Charge, Grant, GrantSource
from metergate.core.usage import TokenClass, Usage
from metergate.metering.limits import Limits
from metergate.metering.offering import Offering
from metergate.metering.use_case import Metering
from metergate.telemetry.fan_out import FanOut
from simulation.app import App
from simulation.correcting import Operator
from simulation.luck import Luck, require
from simulation.unreliable_backend import WORDS, UnreliableBackend, UnreliablePolicy
from simulation.unreliable_ledger import UnreliableLedger

LIMITS = Limits(
    slice_tokens=4,
    delivery_characters_max=24,
    read_ahead_characters_max=64,
    first_token_seconds_max=5.0,
    between_tokens_seconds_max=2.0,
    request_seconds_max=20.0,
    content_policy_seconds_max=1.0,
)

REQUESTS_MAX = 12
APPS_MAX = 5
HOUR_US = 3_600_000_000

# Of the model that makes vectors: it has prices of a prompt only.
VECTORS_CARD = replace(CARD, rate_card_id="card-2", model_id="model-2", prices=CARD.prices[:2])
DIMENSIONS = 3
SOMETHING_ELSE = "something else"


@dataclass
class Asked:
    """A request by its id: what was asked first, and every receipt of it."""

    text: str
    is_embedding: bool
    receipts: list[Receipt] = field(default_factory=list)


class Simulation:
    """One run. ``run`` raises Broken, or whatever else went wrong, with the seed's own trace in ``luck``."""

    def __init__(self, seed: int) -> None:
        self.luck = Luck(random.Random(seed))
        self.causes: set[CloseCause] = set()
        self._asked: dict[str, Asked] = {}
        self._streams: list[App] = []
        self._completions: list[Completion] = []
        self._calls: dict[asyncio.Task[None], None] = {}  # in order; a set would be in another at each run
        self._was_left = False  # a process died, and left its reservations to recovery

    async def run(self) -> None:
        """Set up, let things happen, and check what must hold."""
        luck = self.luck
        self._backends = [UnreliableBackend(luck, f"backend-{number}") for number in (1, 2)]
        self._world = world = World(limits=LIMITS, backends=self._backends)
        world.ledger = self._ledger = UnreliableLedger(luck, world.clock, luck.random.choice((0.0, 0.02, 0.1)))
        self._policy = UnreliablePolicy(luck) if luck.happens(0.5) else None
        world.metering = self._new_gateway()
        await self._ledger.add_rate_cards([CARD, VECTORS_CARD])
        cap = luck.random.choice((None, None, 400, 2_000))
        await world.fund(luck.random.choice((200, 2_000, 20_000)), cap_microcredits=cap)
        await self._add_expiring_grant()
        self._ledger.is_reliable = False
        self.operator = Operator(luck, self._ledger)
        apps = [self._app(number) for number in range(luck.random.randrange(1, APPS_MAX + 1))]
        await asyncio.gather(*apps, self.operator.run(), self._trouble())
        await self._end()

    def _new_gateway(self) -> Metering:
        world = self._world
        chats = world.offering(pool_of(self._backends, chance=self.luck.random.random))
        vectors = replace(
            chats.catalog.models["model-1"],
            model_id="model-2",
            task=ModelTask.EMBEDDING,
            dimensions=DIMENSIONS,
            rate_cards=(VECTORS_CARD,),
        )
        offering = Offering(
            catalog=Catalog({**chats.catalog.models, "model-2": vectors}),
            tokenizers={**chats.tokenizers, "model-2": WordTokenizer()},
            pool=chats.pool,
        )
        return Metering(
            ledger=self._ledger,
            offering=offering,
            clock=world.clock,
            new_id=world.new_id,
            monotonic=asyncio.get_running_loop().time,
            limits=LIMITS,
            observer=FanOut(()),
            policy=self._policy,
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
            **self.luck.random.choice(({}, {"rollover_microcredits_max": 300, "rollover_seconds": 3_600})),
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
            new = Asked(text=f"of the {luck.random.choice(WORDS)}", is_embedding=luck.happens(0.2))
            asked = self._asked.setdefault(request_id, new)
            text = SOMETHING_ELSE if luck.happens(0.05) else asked.text
            call = asyncio.create_task(self._call(request_id, asked, text))
            self._calls[call] = None
            call.add_done_callback(self._calls.pop)
            if luck.happens(0.3):
                await luck.some_time()
                call.cancel()
            await asyncio.wait([call])
            if not call.cancelled():
                call.result()

    async def _call(self, request_id: str, asked: Asked, text: str) -> None:
        outcome = "ended well"
        try:
            if asked.is_embedding:
                await self._embed(request_id, asked, text)
            else:
                await self._generate(request_id, asked, text)
        except MetergateError as exc:
            outcome = type(exc).__name__
        except RuntimeError as exc:  # the defect of an adapter, which the edge would turn into a status
            outcome = str(exc)
        self.luck.note(f"{request_id} {outcome}")

    async def _generate(self, request_id: str, asked: Asked, text: str) -> None:
        luck, metering, caller = self.luck, self._world.metering, self._world.caller
        limit = luck.random.choice((None, None, 60, 200)) if asked.text == text else None
        wanted = request(text, request_id, max_completion_tokens=luck.random.choice((None, 3, 20)))
        wanted = replace(wanted, credit_limit_microcredits=limit)
        seconds = luck.random.choice((None, None, None, 1.0))
        if luck.happens(0.7):
            app = App(luck, self._ledger, self._policy, request_id)
            self._streams.append(app)
            try:
                await metering.stream(caller, wanted, app, time_left_seconds=seconds)
            finally:
                asked.receipts += app.receipts
        else:
            completion = await metering.complete(caller, wanted, time_left_seconds=seconds)
            self._completions.append(completion)
            asked.receipts.append(completion.receipt)

    async def _embed(self, request_id: str, asked: Asked, text: str) -> None:
        seconds = self.luck.random.choice((None, None, None, 1.0))
        wanted = EmbeddingRequest(request_id=request_id, model_id="model-2", inputs=_inputs(text))
        embedded = await self._world.metering.embed(self._world.caller, wanted, time_left_seconds=seconds)
        asked.receipts.append(embedded.receipt)
        if embedded.embeddings is not None:  # L1: whoever has the vectors has paid for them
            charge = self._ledger.books.charges.rows.get(embedded.receipt.charge_id or "")
            paid = None if charge is None else charge.charged_microcredits
            require(paid == _vectors_cost(text), f"{request_id} got vectors for {paid}")
            require(len(embedded.embeddings.vectors) == len(wanted.inputs), f"{request_id} got {embedded.embeddings}")

    # --- what must hold ---------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        await self._world.metering.settled()
        await asyncio.sleep(60.0)  # for what a dead process left running here
        if not self._was_left and not self._ledger.has_failed:
            require(not self._ledger.open_reservations(), "a reservation is open, and nobody died")
        self._ledger.is_reliable = True
        self._ledger.restart()  # what a failed store left to recovery
        require(not self._ledger.open_reservations(), "a reservation is open")
        require(not any(backend.open_generations for backend in self._backends), "a backend generates for nobody")
        require(not await differences(self._ledger), "the books do not add up")
        charges = {charge.charge_id: charge for charge in self._ledger.books.charges.rows.values()}
        self.causes = {row.close_cause for row in self._ledger.books.reservations.rows.values() if row.close_cause}
        self.operator.check()
        for request_id, asked in self._asked.items():
            self._check_receipts(asked, charges)
            if asked.is_embedding:
                self._check_vectors(asked, (row for row in charges.values() if row.request_id == request_id))
        for completion in self._completions:
            self._check_completion(completion, charges)
        by_reservation = {charge.reservation_id: charge for charge in charges.values()}
        ran: set[str] = (
            set()
        )  # reservations; who is told of one again is replayed to, though perhaps cut off before the receipt
        for app in self._streams:
            if app.admission is None:
                continue
            if app.admission.reservation_id in ran:
                self._check_replayed(app, app.admission, by_reservation[app.admission.reservation_id])
                continue
            ran.add(app.admission.reservation_id)
            if not any(receipt.replayed for receipt in app.receipts):
                self._check_delivered(app, app.admission, by_reservation.get(app.admission.reservation_id))

    def _check_receipts(self, asked: Asked, charges: dict[str, Charge]) -> None:
        """L4: every receipt of a request that was charged tells of the same charge, and that is in the books."""
        told = {receipt.charge_id for receipt in asked.receipts if receipt.charge_id is not None}
        require(len(told) <= 1, f"one request has the charges {told}")
        for receipt in asked.receipts:
            if receipt.charge_id is not None:
                charge = charges[receipt.charge_id]
                require(charge.charged_microcredits == receipt.charged_microcredits, f"{receipt} is not {charge}")

    def _check_vectors(self, asked: Asked, charges: Iterator[Charge]) -> None:
        """L5, L7: all ends that charge, charge the inputs."""
        for charge in charges:
            costs = (_vectors_cost(asked.text), _vectors_cost(SOMETHING_ELSE))
            require(charge.charged_microcredits in costs, f"vectors cost {costs[0]}: {charge}")

    def _check_completion(self, completion: Completion, charges: dict[str, Charge]) -> None:
        """L7 of an answer that came at once, and that its content policy allowed it."""
        receipt = completion.receipt
        if completion.message is None or receipt.charge_id is None:
            return
        text = completion.message.text()
        cost = rate_ceil(usage(receipt.usage_counted.get(TokenClass.PROMPT), text), CARD)
        require(cost == receipt.charged_microcredits, f"{cost} returned: {receipt}")
        if self._policy is not None:
            allowed = self._policy.allowed[charges[receipt.charge_id].reservation_id]
            require(allowed.startswith(text), f"{text!r} was returned, allowed is {allowed!r}")

    def _check_replayed(self, app: App, admission: Admission, charge: Charge) -> None:
        """L4: a replay, perhaps cut off, gives nothing that was not paid for when it was first delivered."""
        cost = rate_ceil(usage(admission.prompt_tokens, app.text), CARD)
        require(cost <= charge.captured_microcredits, f"{cost} replayed: {charge}")

    def _check_delivered(self, app: App, admission: Admission, charge: Charge | None) -> None:
        """L1, L5, L7: what arrived is charged exactly; after a crash at least, with one delivery more at most."""
        cost = rate_ceil(usage(admission.prompt_tokens, app.text), CARD)
        if charge is None:
            require(not app.text, f"{app.text!r} was delivered for nothing")
        elif charge.close_cause is CloseCause.CRASH:
            one_more = rate_ceil(usage(admission.prompt_tokens, app.text + "x " * LIMITS.delivery_characters_max), CARD)
            require(cost <= charge.charged_microcredits <= one_more, f"{cost} delivered: {charge}")
        elif app.text:
            require(cost == charge.charged_microcredits, f"{cost} delivered: {charge}")


def _inputs(text: str) -> tuple[str, ...]:
    return (text, "and the shore")


def _vectors_cost(text: str) -> int:
    tokens = sum(2 + count_words(part) for part in _inputs(text))
    return rate_ceil(Usage.of({TokenClass.PROMPT: tokens}), VECTORS_CARD)

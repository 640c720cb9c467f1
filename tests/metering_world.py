"""The metering use case over an in-memory ledger, with a scripted backend and a recorder at the app's end."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fakes import FakeClock, MemoryLedgerStore

from metergate.core.catalog import Catalog, Model, ReasoningForm
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.inference import (
    BackendEvent,
    BackendRequest,
    Delta,
    Finish,
    InferenceRequest,
    Message,
    Prompt,
    Role,
)
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber
from metergate.core.rating import RateCard, rate_ceil
from metergate.core.receipts import Admission, Receipt
from metergate.core.rows import Authorization, Channel, Charge, FinishReason, Grant, GrantSource, Wallet, WalletState
from metergate.core.text_bounds import PromptBound
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.metering.call import NO_TRACE
from metergate.metering.limits import Limits
from metergate.metering.offering import Offering
from metergate.metering.pool import Member, Pool, PoolLimits
from metergate.metering.use_case import Metering
from metergate.ports import Backend, ChargeFilter, ContentPolicy, Observer, PoolObserver, TokenCodec
from metergate.telemetry.fan_out import FanOut

CONTEXT_TOKENS = 500
STOP = Finish(reason=FinishReason.STOP)

# 2.5 microcredits a prompt token and 7.3 a completion token: every rounding shows.
CARD = RateCard(
    rate_card_id="card-1",
    model_id="model-1",
    effective_time_us=0,
    expire_time_us=None,
    prices=(
        (TokenClass.PROMPT, 2_500_000),
        (TokenClass.CACHED_PROMPT, 500_000),
        (TokenClass.COMPLETION, 7_300_000),
        (TokenClass.REASONING, 7_300_000),
    ),
)


def count_words(text: str) -> int:
    """Not monotone, as real counts are not: a word costs a token for 3 characters, but a word of 8 only 1."""
    return sum(1 if len(word) == 8 else -(-len(word) // 3) for word in text.split(" "))


class WordCounter:
    """Counts all of its text anew."""

    def __init__(self, text: str = "") -> None:
        self._text = text

    @property
    def tokens(self) -> int:
        return count_words(self._text)

    @property
    def tail_characters(self) -> int:
        return len(self._text)

    def add(self, text: str) -> int:
        self._text += text
        return self.tokens

    def copy(self) -> "WordCounter":
        return WordCounter(self._text)


class WordTokenizer:
    """Counts words; a message costs 3 more."""

    characters_per_token_max = None

    def count_text(self, text: str) -> int:
        return count_words(text)

    def count_prompt(self, prompt: Prompt) -> int:
        return sum(3 + count_words(message.text()) for message in prompt.messages)

    def count_input(self, text: str) -> int:
        return 2 + count_words(text)

    def completion_counter(self) -> WordCounter:
        return WordCounter()


ScriptItem = BackendEvent | Embeddings | tuple[BackendEvent, ...] | Exception | asyncio.Event


class ScriptedBackend:
    """Plays a script: events are sent, several of a tuple at once; errors raised, asyncio events waited for."""

    def __init__(self, script: Iterable[ScriptItem], backend_id: str = "backend-1") -> None:
        self.backend_id = backend_id
        self.script = list(script)
        self.requests: list[BackendRequest] = []
        self.embedding_requests: list[EmbeddingBackendRequest] = []
        self.open_generations = 0
        self.played = asyncio.Event()  # it came to an event of its script and waits for it

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        self.requests.append(request)
        self.open_generations += 1
        try:
            for item in self.script:
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    self.played.set()
                    await item.wait()
                else:
                    assert not isinstance(item, Embeddings)
                    for event in item if isinstance(item, tuple) else (item,):
                        yield event
        finally:
            self.open_generations -= 1

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        self.embedding_requests.append(request)
        self.open_generations += 1
        try:
            for item in self.script:
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    self.played.set()
                    await item.wait()
                if isinstance(item, Embeddings):
                    return item
            raise AssertionError("the script has no vectors")
        finally:
            self.open_generations -= 1

    async def is_up(self) -> bool:
        return True

    async def close(self) -> None:
        return None


class KeepingBackend(ScriptedBackend):
    """Plays ``first`` to requests on kept connections, and its script to repeats."""

    def __init__(
        self, first: Sequence[ScriptItem], script: Sequence[ScriptItem], backend_id: str = "backend-1"
    ) -> None:
        super().__init__(script, backend_id)
        self._scripts = {False: list(first), True: list(script)}

    def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        self.script = self._scripts[request.is_repeat]
        return super().generate(request)

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        self.script = self._scripts[request.is_repeat]
        return await super().embed(request)


@dataclass
class RecordingSink:
    """The app: it keeps what it gets, and checks L1 at the instant of each delivery."""

    ledger: MemoryLedgerStore
    admissions: list[Admission] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    stall: asyncio.Event | None = None  # held back by it before a delivery returns
    delivered: asyncio.Event = field(default_factory=asyncio.Event)
    counts_token_ids: bool = False
    # Its backend counts: what is delivered may be a token for each byte since a report, up to what this says.
    tokens_max: Callable[[], int] | None = None

    async def admit(self, admission: Admission) -> None:
        self.admissions.append(admission)
        await asyncio.sleep(0)

    async def deliver(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.check_debited()
        self.delivered.set()
        await asyncio.sleep(0)
        if self.stall is not None:
            await self.stall.wait()

    async def receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)
        await asyncio.sleep(0)

    def text(self) -> str:
        return "".join(delta.content for delta in self.deltas)

    def check_debited(self) -> None:
        admission = self.admissions[0]
        captured = self.ledger.books.reservations.rows[admission.reservation_id].captured_microcredits
        assert rate_ceil(self.usage_delivered(), CARD) <= captured

    def usage_delivered(self) -> Usage:
        prompt_tokens = self.admissions[0].prompt_tokens
        if self.tokens_max is not None:
            return bounded_usage(prompt_tokens, self.deltas, self.tokens_max())
        if not self.counts_token_ids:
            return usage(prompt_tokens, self.text())
        tokens = sum(len(delta.token_starts) for delta in self.deltas)
        return Usage.of({TokenClass.PROMPT: prompt_tokens, TokenClass.COMPLETION: tokens})


def usage(prompt_tokens: int, text: str) -> Usage:
    """What an answer of content only counts."""
    return Usage.of({TokenClass.PROMPT: prompt_tokens, TokenClass.COMPLETION: count_words(text)})


def bounded_usage(prompt_tokens: int, deltas: Sequence[Delta], tokens_max: int) -> Usage:
    """The most that deltas of content only can be."""
    tokens = 0
    for delta in deltas:
        tokens += len(delta.content.encode())
        if delta.usage is not None:
            tokens = delta.usage.get(TokenClass.COMPLETION)
    return Usage.of({TokenClass.PROMPT: prompt_tokens, TokenClass.COMPLETION: min(tokens, tokens_max)})


def request(text: str = "what is it", request_id: str = "request-1", **fields: object) -> InferenceRequest:
    prompt = Prompt(messages=(Message(role=Role.USER, parts=(text,)),))
    return InferenceRequest(request_id=request_id, model_id="model-1", prompt=prompt, **fields)  # type: ignore[arg-type]


def content(*pieces: str) -> list[Delta]:
    return [Delta(content=piece) for piece in pieces]


class SilentPoolObserver:
    """Sees nothing."""

    def waited(self, model_id: str, seconds: float, *, has_place: bool) -> None:
        return None

    def ejected(self, backend_id: str, model_id: str) -> None:
        return None


ROOMY = PoolLimits(requests_max=1_000, queue_max=1_000, queue_seconds_max=10.0)


def pool_of(
    backends: Iterable[Backend],
    *,
    limits: PoolLimits = ROOMY,
    chance: Callable[[], float] = random.random,
    observer: PoolObserver | None = None,
) -> Pool:
    """A pool of these backends."""
    return Pool(
        {backend.backend_id: Member(backend, limits) for backend in backends},
        monotonic=asyncio.get_running_loop().time,
        chance=chance,
        observer=observer or SilentPoolObserver(),
    )


def _source(codec: TokenCodec | None, prompt_bound: PromptBound | None) -> CountingSource:
    if prompt_bound is not None:
        return CountingSource.BACKEND
    return CountingSource.TOKENIZER if codec is None else CountingSource.TOKEN_IDS


class World:
    """One subscriber with one authorization, one model, and backends that play scripts."""

    def __init__(
        self,
        script: Iterable[ScriptItem] = (),
        *,
        limits: Limits | None = None,
        backends: Sequence[Backend] | None = None,
        observers: Sequence[Observer] = (),
        codec: TokenCodec | None = None,
        reasoning: ReasoningForm = ReasoningForm.NONE,
        prompt_bound: PromptBound | None = None,
        policy: ContentPolicy | None = None,
        **of_the_model: Any,
    ) -> None:
        """``codec``: the model is counted by its token ids; ``prompt_bound``: by its backend; else by WordTokenizer."""
        self.clock = FakeClock()
        self.ledger = MemoryLedgerStore(clock=self.clock)
        self.backend = ScriptedBackend(script)
        members = list(backends) if backends is not None else [self.backend]
        model = Model(
            model_id="model-1",
            display_name="Model 1",
            provider_id="provider-1",
            context_tokens=CONTEXT_TOKENS,
            counting_source=_source(codec, prompt_bound),
            backend_ids=tuple(backend.backend_id for backend in members),
            rate_cards=(CARD,),
            usage_tolerance_tokens=1,
            prompt_bound=prompt_bound,
            reasoning=reasoning,
        )
        model = replace(model, **of_the_model)
        self._ids = 0
        self.caller = Authorization(
            authorization_id="authorization-1",
            subscriber_id="subscriber-1",
            app_id="app-1",
            channel=Channel.APP,
            cap_microcredits=None,
            allowed_models=(),
            charged_microcredits=0,
            reserved_microcredits=0,
            create_time_us=0,
            revoke_time_us=None,
        )
        # Of equals, the first is taken.
        self.pool = pool_of(members, chance=lambda: 0.0)
        self._model = model
        self._codec = codec
        self.metering = Metering(
            ledger=self.ledger,
            offering=self.offering(self.pool),
            clock=self.clock,
            new_id=self.new_id,
            monotonic=asyncio.get_running_loop().time,
            limits=limits or Limits(slice_tokens=4),
            observer=FanOut(observers),
            policy=policy,
        )
        self.sink = RecordingSink(
            self.ledger,
            counts_token_ids=codec is not None,
            tokens_max=None if prompt_bound is None else lambda: self.backend.requests[-1].max_completion_tokens,
        )

    def offering(self, pool: Pool) -> Offering:
        """The model, served by the backends of the pool."""
        model_id = self._model.model_id
        return Offering(
            catalog=Catalog({model_id: self._model}),
            tokenizers={} if self._model.prompt_bound else {model_id: self._codec or WordTokenizer()},
            codecs={} if self._codec is None else {model_id: self._codec},
            pool=pool,
        )

    def reload(self, **of_the_model: Any) -> None:
        """Offer the model on other terms from now on."""
        self._model = replace(self._model, **of_the_model)
        self.metering.offering = self.offering(self.pool)

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids}"

    async def fund(self, amount_microcredits: int, *, cap_microcredits: int | None = None) -> "World":
        now_us = self.clock.now_us()
        wallet = Wallet(subscriber_id="subscriber-1", state=WalletState.ACTIVE, sequence=0, create_time_us=now_us)
        await self.ledger.add_subscriber(AddSubscriber(wallet=wallet))
        grant = Grant(
            grant_id="grant-1",
            subscriber_id="subscriber-1",
            source=GrantSource.PLAN_CYCLE,
            priority=0,
            amount_microcredits=amount_microcredits,
            remaining_microcredits=amount_microcredits,
            effective_time_us=now_us,
            expire_time_us=None,
            create_time_us=now_us,
        )
        await self.ledger.add_grant(AddGrant(grant=grant))
        caller = Authorization(
            authorization_id=self.caller.authorization_id,
            subscriber_id=self.caller.subscriber_id,
            app_id=self.caller.app_id,
            channel=self.caller.channel,
            cap_microcredits=cap_microcredits,
            allowed_models=(),
            charged_microcredits=0,
            reserved_microcredits=0,
            create_time_us=0,
            revoke_time_us=None,
        )
        self.caller = await self.ledger.add_authorization(AddAuthorization(authorization=caller))
        return self

    async def stream(
        self,
        asked: InferenceRequest | None = None,
        *,
        time_left_seconds: float | None = None,
        trace_context: Mapping[str, str] = NO_TRACE,
    ) -> None:
        await self.metering.stream(
            self.caller,
            asked or request(),
            self.sink,
            time_left_seconds=time_left_seconds,
            trace_context=trace_context,
        )

    async def settled(self) -> None:
        """Wait until every settlement has been made."""
        await self.metering.settled()

    async def charges(self) -> tuple[Charge, ...]:
        page = await self.ledger.list_charges("subscriber-1", ChargeFilter(), cursor=None, size=100)
        return page.rows

    async def available(self) -> int:
        balance = await self.ledger.balance("subscriber-1", None, self.clock.now_us())
        assert balance.reserved_microcredits == sum(
            reservation.reserved_microcredits for reservation in self.ledger.open_reservations()
        )
        return balance.available_microcredits

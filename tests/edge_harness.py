"""A gateway's gRPC edge in this process: real server, real channel; the metering behind it is scripted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import pytest
from fakes import FakeClock, MemoryLedgerStore
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from metergate.core.catalog import Catalog, Model, ModelTask
from metergate.core.inference import InferenceRequest, Message, Prompt, Role
from metergate.core.keys import format_key, hash_key
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber
from metergate.core.parameters import Parameter
from metergate.core.rating import RateCard
from metergate.core.receipts import Admission, Completion, Quote, Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import ApiKey, Authorization, Channel, FinishReason, Grant, GrantSource, Wallet, WalletState
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.edges.account import AccountServicer
from metergate.edges.auth import Authenticator
from metergate.edges.catalog import CatalogServicer
from metergate.edges.inference import InferenceServicer
from metergate.edges.pages import PageTokens
from metergate.edges.server import ServerHandle, ServerLimits, start_server
from metergate.metering.use_case import Metering
from metergate.ports import Sink
from metergate.v1 import account_pb2_grpc, catalog_pb2_grpc, inference_pb2_grpc

MESSAGE_BYTES_MAX = 64 * 1024

CARD = RateCard(
    rate_card_id="card-1",
    model_id="small",
    effective_time_us=0,
    expire_time_us=None,
    prices=tuple((kind, 2_000_000) for kind in TokenClass),
)

MODEL = Model(
    model_id="small",
    display_name="A small one",
    provider_id="lab",
    context_tokens=2048,
    counting_source=CountingSource.TOKENIZER,
    backend_ids=("b1",),
    rate_cards=(CARD, replace(CARD, rate_card_id="card-2", effective_time_us=4_000_000_000_000_000)),
    usage_tolerance_tokens=0,
    parameters=frozenset({Parameter.TOOLS, Parameter.TEMPERATURE}),
)

VECTORS_MODEL = replace(
    MODEL,
    model_id="vectors",
    task=ModelTask.EMBEDDING,
    dimensions=576,
    dimensions_selectable=True,
    rate_cards=(replace(CARD, model_id="vectors", rate_card_id="card-v", prices=((TokenClass.PROMPT, 100),)),),
)

ADMISSION = Admission(
    subscriber_id="zhang", reservation_id="r1", prompt_tokens=7, model_id="small", rate_card_id="card-1"
)

RECEIPT = Receipt(
    subscriber_id="zhang",
    charge_id="c1",
    model_id="small",
    rate_card_id="card-1",
    counting_source=CountingSource.TOKENIZER,
    usage_counted=Usage.of({TokenClass.PROMPT: 7, TokenClass.COMPLETION: 3}),
    usage_reported=None,
    charged_microcredits=20,
    spendable_microcredits=980,
    finish_reason=FinishReason.STOP,
    close_cause=CloseCause.FINISHED,
    replayed=False,
)


class Clockwork:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_seconds = 0.0

    def __call__(self) -> float:
        return self.now_seconds


class FakeMetering:
    """Does with each request what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []
        self.callers: list[Authorization] = []
        self.inputs: tuple[str, ...] = ()
        self.time_left_seconds: float | None = None
        self.trace_context: Mapping[str, str] = {}
        self.script: Callable[[Sink], Awaitable[None]] | None = None
        self.error: Exception | None = None

    async def stream(
        self,
        caller: Authorization,
        request: InferenceRequest,
        sink: Sink,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str],
    ) -> None:
        self._note(caller, request, time_left_seconds)
        self.trace_context = trace_context
        assert self.script is not None
        await self.script(sink)

    async def complete(
        self,
        caller: Authorization,
        request: InferenceRequest,
        *,
        time_left_seconds: float | None,
        trace_context: Mapping[str, str],
    ) -> Completion:
        self._note(caller, request, time_left_seconds)
        self.trace_context = trace_context
        if self.error is not None:
            raise self.error
        message = Message(role=Role.ASSISTANT, parts=("Hello",))
        return Completion(message=message, reasoning_content="hm", receipt=RECEIPT)

    async def count_tokens(
        self,
        caller: Authorization,
        model_id: str,
        prompt: Prompt,
        max_completion_tokens: int | None,
        *,
        trace_context: Mapping[str, str],
    ) -> Quote:
        self.callers.append(caller)
        self.trace_context = trace_context
        if self.error is not None:
            raise self.error
        return Quote(
            model_id=model_id,
            prompt_tokens=7,
            completion_tokens_max=max_completion_tokens or 100,
            prompt_microcredits=14,
            cost_microcredits_max=214,
            rate_card=CARD,
            counting_source=CountingSource.TOKENIZER,
        )

    async def count_inputs(
        self, caller: Authorization, model_id: str, inputs: tuple[str, ...], *, trace_context: Mapping[str, str]
    ) -> Quote:
        self.callers.append(caller)
        self.trace_context = trace_context
        self.inputs = inputs
        return Quote(
            model_id=model_id,
            prompt_tokens=7,
            completion_tokens_max=0,
            prompt_microcredits=14,
            cost_microcredits_max=14,
            rate_card=CARD,
            counting_source=CountingSource.TOKENIZER,
        )

    def _note(self, caller: Authorization, request: InferenceRequest, time_left_seconds: float | None) -> None:
        self.callers.append(caller)
        self.requests.append(request)
        self.time_left_seconds = time_left_seconds


def key_of(number: int) -> str:
    """A key like any other, always the same."""
    return format_key(bytes([number]) * 32)


APP_KEY, OTHER_APP_KEY, OWN_KEY, FOREIGN_KEY = (key_of(number) for number in range(1, 5))


async def add_key(
    store: MemoryLedgerStore,
    key: str,
    subscriber_id: str,
    app_id: str,
    *,
    allowed_models: tuple[str, ...] = (),
    expire_time_us: int | None = None,
) -> None:
    """A subscriber (if it is new), a consent and a key."""
    name = f"{subscriber_id}-{app_id or 'own'}"
    wallet = Wallet(subscriber_id=subscriber_id, state=WalletState.ACTIVE, sequence=0, create_time_us=1)
    await store.add_subscriber(AddSubscriber(wallet=wallet))
    authorization = Authorization(
        authorization_id=name,
        subscriber_id=subscriber_id,
        app_id=app_id,
        channel=Channel.APP,
        cap_microcredits=600 if app_id else None,
        allowed_models=allowed_models,
        charged_microcredits=0,
        reserved_microcredits=0,
        create_time_us=1,
        revoke_time_us=None,
    )
    await store.add_authorization(AddAuthorization(authorization=authorization))
    await store.add_key(
        ApiKey(
            key_id=name,
            secret_hash=hash_key(key),
            authorization_id=name,
            create_time_us=1,
            revoke_time_us=None,
            expire_time_us=expire_time_us,
        )
    )


async def add_grant(store: MemoryLedgerStore, subscriber_id: str, grant_id: str, amount_microcredits: int) -> None:
    """Credits that never expire."""
    grant = Grant(
        grant_id=grant_id,
        subscriber_id=subscriber_id,
        source=GrantSource.TOP_UP,
        priority=1,
        amount_microcredits=amount_microcredits,
        remaining_microcredits=amount_microcredits,
        effective_time_us=1,
        expire_time_us=None,
        create_time_us=store.clock.now_us(),
    )
    await store.add_grant(AddGrant(grant=grant))


@dataclass
class Edge:
    """The running edge and what stands behind it."""

    handle: ServerHandle
    channel: grpc.aio.Channel
    store: MemoryLedgerStore
    metering: FakeMetering
    clock: FakeClock
    monotonic: Clockwork

    @property
    def inference(self) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def account(self) -> "account_pb2_grpc.AccountServiceAsyncStub":
        return account_pb2_grpc.AccountServiceStub(self.channel)

    @property
    def catalog(self) -> "catalog_pb2_grpc.CatalogServiceAsyncStub":
        return catalog_pb2_grpc.CatalogServiceStub(self.channel)


@asynccontextmanager
async def running_edge(limits: ServerLimits | None = None) -> AsyncIterator[Edge]:
    clock, monotonic, metering = FakeClock(), Clockwork(), FakeMetering()
    store = MemoryLedgerStore(clock=clock)
    await add_key(store, APP_KEY, "zhang", "workbuddy", allowed_models=("small",))
    await add_key(store, OTHER_APP_KEY, "zhang", "cloudphone", allowed_models=("another",))
    await add_key(store, OWN_KEY, "zhang", "")
    await add_key(store, FOREIGN_KEY, "li", "")
    page_tokens = PageTokens(store.content_key)
    models = {model_id: replace(MODEL, model_id=model_id) for model_id in ("small", "another", "third")}
    catalog = Catalog({**models, "vectors": VECTORS_MODEL})
    handle = await start_server(
        address="127.0.0.1:0",
        servicers=[
            InferenceServicer(cast(Metering, metering)),
            AccountServicer(store, clock, page_tokens),
            CatalogServicer(lambda: catalog, clock, page_tokens),
        ],
        authenticator=Authenticator(store, monotonic, clock),
        limits=limits or ServerLimits(message_bytes_max=MESSAGE_BYTES_MAX),
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{handle.port}", options=options) as channel:
        yield Edge(handle, channel, store, metering, clock, monotonic)
    await handle.server.stop(None)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a key."""
    return (("authorization", f"Bearer {key}"),)


@dataclass(frozen=True)
class Refusal:
    """A failed call as the app sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    retry_seconds: int | None


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Decode the details as a client of Google's own library does."""
    status = rpc_status.from_call(cast(Any, error))
    assert status is not None, f"{error.code()} without details: {error.details()}"
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    retry_seconds = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.seconds
    assert info.domain == "metergate"
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        violations={violation.field: violation.description for violation in bad_request.field_violations},
        retry_seconds=retry_seconds,
    )


async def refused(call: Awaitable[object]) -> Refusal:
    """Await a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 10)
    return refusal_of(caught.value)

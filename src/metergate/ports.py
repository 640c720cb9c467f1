"""What the use cases need of the outside, in the domain's words: never SQL, HTTP or gRPC."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from metergate.core.accounts import DAY_US, AccountBalance
from metergate.core.audit import SubscriberLedger
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Prompt
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    EraseSubscriber,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.passage import Passage
from metergate.core.rating import RateCard
from metergate.core.receipts import Admission, Receipt
from metergate.core.reservation import Owner, Reservation
from metergate.core.rows import ApiKey, Authorization, Charge, Correction, Erasure, Grant, Transfer, Wallet
from metergate.core.times import TIME_US_MAX
from metergate.core.usage import CountingSource

Row = TypeVar("Row")


class Clock(Protocol):
    """Wall time for records and expiry; monotonic time comes from the event loop."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...


class CompletionCounter(Protocol):
    """Counts a text that grows. After any chunking, the count equals that of the whole text at once (L7)."""

    @property
    def tokens(self) -> int:
        """Tokens of all text so far, exactly. It may shrink as text is added."""
        ...

    @property
    def tail_characters(self) -> int:
        """How much text the next ``add`` encodes again; a large one belongs in a thread."""
        ...

    def add(self, text: str) -> int:
        """Append text and return ``tokens``."""
        ...

    def copy(self) -> Self:
        """Return an independent counter of the same text so far, at a cost that does not grow with the text."""
        ...


class Tokenizer(Protocol):
    """The counting rule of one model. All methods are plain computation and safe in threads.

    A text of a model's output that cannot be counted raises an error that is no MetergateError.
    """

    @property
    def characters_per_token_max(self) -> int | None:
        """The most characters of a text that one token stands for; None if there is no bound.

        A text of n characters has at least n / this tokens. Of a prompt, a template may leave parts out.
        """
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a text as the model's own vocabulary has it, without a template."""
        ...

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of the prompt through the model's own chat template, the generation prompt included.

        RequestInvalid, naming ``messages`` or ``tools``, if the template refuses them or they cannot be counted.
        """
        ...

    def count_input(self, text: str) -> int:
        """Tokens of a text that is embedded: no template, but the special tokens that the model's file adds around it.

        RequestInvalid, whatever field it names, if it cannot be counted.
        """
        ...

    def completion_counter(self) -> CompletionCounter:
        """A new counter for one growing text."""
        ...


class TokenCodec(Tokenizer, Protocol):
    """The counting rule of a model whose backends take and give token ids."""

    @property
    def token_ids_max(self) -> int:
        """One more than the highest id of the vocabulary."""
        ...

    def encode_prompt(self, prompt: Prompt) -> Sequence[int]:
        """The ids of the prompt, as many as ``count_prompt`` says; RequestInvalid as there."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of UTF-8 that a token stands for; none of a special token, which is not shown.

        None: the vocabulary has no such id.
        """
        ...


class Backend(Protocol):
    """A server that runs models."""

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        ...

    def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        """Run the request. Closing the generator stops the generation on the backend.

        Raises BackendUnavailable (it could not be reached, failed, or answered nonsense) or BackendRejected (it refused
        the request as such; another backend would too).
        """
        ...

    async def is_up(self) -> bool:
        """Whether it can be reached now, by a look that runs no model. Never raises."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


@runtime_checkable
class EmbeddingBackend(Protocol):
    """A backend that turns texts into vectors too."""

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        """Return a vector for each input; cancelling the call gives it up.

        Raises BackendUnavailable or BackendRejected as ``Backend.generate`` does; vectors that are not as many, as long
        or as finite as they must be are an answer that is nonsense.
        """
        ...


class ContentPolicy(Protocol):
    """Decides whether a piece of an answer may reach the app. It neither stores nor logs what it is shown (L11)."""

    async def allows(self, passage: Passage) -> bool:
        """Whether it may; cancelling the call gives it up. ContentPolicyUnavailable if that cannot be told."""
        ...


class Sink(Protocol):
    """The app's end of a stream. A write counts as delivered from the moment it begins, whether it ends or not.

    Every write raises CancelledError when the app is not there any more.
    """

    async def admit(self, admission: Admission) -> None:
        """Write the admission."""
        ...

    async def deliver(self, delta: Delta) -> None:
        """Write a piece of the answer; returns when the app's flow control lets the next one follow."""
        ...

    async def receipt(self, receipt: Receipt) -> None:
        """Write the receipt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A call that came in, as its observers see it."""

    verb: str  # "StreamComplete", "Complete", "Embed" or "CountTokens"
    caller: Authorization
    model_id: str  # as the app wrote it: perhaps no model at all
    request_id: str  # "" for CountTokens
    trace_context: Mapping[str, str]  # W3C traceparent and tracestate, as the app sent them


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delta that is about to be written to the app; times in seconds."""

    characters: int
    is_first: bool
    backend_seconds: float  # how long the gateway waited for the backend; for the first: since the dispatch
    gateway_seconds: float  # from when backend and app were both ready until now; for the first: admission included
    capture_seconds: float  # the part of it that the capture took


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A transaction of the store, or a failed one; times in seconds."""

    operations: int
    seconds: float
    queued: int  # operations that wait for the next
    expired_microcredits: int  # that became breakage in it
    has_failed: bool


class CallObserver(Protocol):
    """Watches one call. No method waits or raises, and none keeps or logs what the app or the model wrote (L11)."""

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """Credit was set aside."""
        ...

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """A backend is called now. Returns the trace context to send along."""
        ...

    def failed_over(self, backend_id: str, problem: str) -> None:
        """A backend failed; perhaps another is called."""
        ...

    def delivered(self, delivery: Delivery) -> None:
        """A delta is written now; its capture is durable."""
        ...

    def settled(self, operation: Settle, settled: Settled) -> None:
        """The reservation is closed."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """The call is over: the last method to be called, and always called. None: it ended well."""
        ...


class Observer(Protocol):
    """Watches the gateway: metrics, logs and traces are observers. No method waits or raises."""

    def call_began(self, start: CallStart) -> CallObserver:
        """A call came in and was authenticated."""
        ...

    def committed(self, commit: Commit) -> None:
        """The store finished a transaction."""
        ...


class PoolObserver(Protocol):
    """Watches the backends' pool. No method waits or raises."""

    def waited(self, model_id: str, seconds: float, *, has_place: bool) -> None:
        """A request waited for a backend, and got one or not."""
        ...

    def ejected(self, backend_id: str, model_id: str) -> None:
        """A backend is left out for a while, for one model."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grantee:
    """What a bearer key stands for."""

    key: ApiKey
    authorization: Authorization


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A wallet at one instant."""

    wallet: Wallet
    available_microcredits: int  # in effect, not expired, not reserved
    reserved_microcredits: int  # of open reservations
    spendable_microcredits: int  # what the asking authorization may still spend


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeFilter:
    """Which charges to list: all that match every given field."""

    authorization_id: str | None = None
    app_id: str | None = None
    model_id: str | None = None
    settle_time_us_min: int | None = None  # inclusive
    settle_time_us_max: int | None = None  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFilter:
    """Which transfers to list: all that match every given field."""

    app_id: str | None = None  # of the charge that moved it
    model_id: str | None = None  # of the charge that moved it
    create_time_us_min: int | None = None  # inclusive
    create_time_us_max: int | None = None  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A range of time, in microseconds since the epoch."""

    first_us: int  # inclusive
    end_us: int  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """A range of days since the epoch, UTC, both ends included."""

    first: int = 0
    last: int = TIME_US_MAX // DAY_US


ALL_DAYS = Days()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Row]):
    """Some rows and where the next ones begin."""

    rows: tuple[Row, ...]
    next_cursor: str | None  # None: these were the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a look for abandoned reservations came to."""

    settled: int
    stuck: int  # that could not be settled


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageComparison:
    """What the gateway counted of finished answers beside what a backend reported, of one day."""

    day_us: int  # its beginning: microseconds since the epoch, UTC; by the time of settling
    backend_id: str  # that served the answers
    model_id: str
    counting_source: CountingSource
    charges: int
    unreported_charges: int  # of them, without a report: they are in no sum of tokens
    mismatched_charges: int  # of them, with a report beyond the model's tolerance
    counted_tokens: int  # that were charged, all classes together
    reported_tokens: int


class LedgerStore(Protocol):
    """The ledger on durable storage. Every writing verb is one atomic transaction, acknowledged after its commit.

    A cancelled caller does not stop an operation that was handed over. Every verb raises StoreUnavailable when storage
    fails; its outcome is then unknown, and every reservation of this owner is left to recovery. The operations' own
    refusals are the errors that ``core.ledger`` names.
    """

    @property
    def owner(self) -> Owner:
        """This process in its present epoch; a new epoch begins whenever the store had to be opened again."""
        ...

    @property
    def content_key(self) -> bytes:
        """The secret this store keys content hashes with (L11)."""
        ...

    async def check(self) -> None:
        """Write durably something that changes nothing: StoreUnavailable tells that nothing else can be written."""
        ...

    async def close(self) -> None:
        """Finish what was handed over and close."""
        ...

    # --- credit -----------------------------------------------------------------------------------------------------

    # The three of every request return an awaitable that need not be a coroutine: an adapter that has a future already
    # spares the request a task.

    def reserve(self, operation: Reserve) -> Awaitable[Reserved | Replayed]:
        """Set credit aside for a request."""
        ...

    def capture(self, operation: Capture) -> Awaitable[Captured]:
        """Debit a reservation before a delivery."""
        ...

    def settle(self, operation: Settle) -> Awaitable[Settled]:
        """Close a reservation."""
        ...

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        ...

    async def recover_abandoned(self, is_running: Callable[[str], bool]) -> Recovery:
        """Settle, at what was captured, every open reservation that nobody runs any more (L5).

        Of this owner these are the ones that ``is_running`` does not know, by id; of others, those whose owner's lease
        is over (``core.leases``). One that cannot be settled is logged and left for the next time.
        """
        ...

    async def prune_reservations(self, closed_before_us: int, *, count_max: int) -> int:
        """Remove the oldest closed reservations, at most so many, that were closed before a time; how many.

        Their charges stay, and with them the ids that answer a repeated request (L4).
        """

    async def expire_grants(self, now_us: int, limit: int) -> int:
        """Move on what remains of grants whose time is over, as the next change of their wallets would.

        Each grant is dealt with once. Returns how many were; fewer than ``limit`` if these were all.
        """
        ...

    # --- corrections ------------------------------------------------------------------------------------------------

    async def refund(self, operation: Refund) -> Correction:
        """Give back part of a charge."""
        ...

    async def adjust(self, operation: Adjust) -> Correction:
        """Give credit, or take what is available."""
        ...

    async def reverse(self, operation: Reverse) -> Correction:
        """Take back a grant whose payment was taken back."""
        ...

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        """Stop a wallet, or let it be spent from again."""
        ...

    # --- setting up -------------------------------------------------------------------------------------------------

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        """Open a wallet."""
        ...

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        """Forget a subscriber: ReservationsOpen while a request of it runs; ResourceNotFound; RequestInvalid.

        Nothing that names it is left on the storage, at the latest when reads that began before have ended; unless the
        answer says that it is to be compacted first.
        """
        ...

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        ...

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash."""
        ...

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key; ResourceNotFound if there is none. A second revocation keeps the first's time."""
        ...

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        """Record when keys, by id, were last used; never earlier than was recorded. Unknown keys are left out."""
        ...

    async def add_rate_cards(self, cards: Sequence[RateCard]) -> None:
        """Record rate cards for audits; IdConflict if one was recorded with other prices: cards are immutable."""
        ...

    # --- reading ----------------------------------------------------------------------------------------------------

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        """Whom a key stands for, revoked or not; None if the key is unknown."""
        ...

    async def list_keys(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grantee]:
        """Every key that may spend of a wallet, expired and revoked ones included, by key id."""
        ...

    async def balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        """The wallet now. ResourceNotFound without such a subscriber."""
        ...

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        ...

    async def list_corrections(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Correction]:
        """Corrections, newest first."""
        ...

    async def list_charges(
        self, subscriber_id: str, where: ChargeFilter, *, cursor: str | None, size: int
    ) -> Page[Charge]:
        """Charges, newest first."""
        ...

    async def get_charge(self, subscriber_id: str, charge_id: str) -> Charge:
        """One charge of this subscriber; ResourceNotFound otherwise."""
        ...

    async def list_transfers(
        self, subscriber_id: str, where: TransferFilter, *, cursor: str | None, size: int
    ) -> Page[Transfer]:
        """Transfers, newest first."""
        ...

    async def account_balances(self, days: Days = ALL_DAYS) -> Mapping[str, AccountBalance]:
        """What moved in and out of each account on these days, by account; GRANTS_ACCOUNT is all grants together."""
        ...

    # --- audit ------------------------------------------------------------------------------------------------------

    def read_charges(self, times: Times) -> AsyncGenerator[Sequence[Charge], None]:
        """Every charge that was settled in a range of time, in pages, in one consistent view of the store."""
        ...

    def read_transfers(self, times: Times) -> AsyncGenerator[Sequence[Transfer], None]:
        """Every transfer that was posted in a range of time, in pages, in one consistent view of the store."""
        ...

    async def count_subscribers(self) -> int:
        """How many wallets there are."""
        ...

    async def compare_usage(self, settle_time_us_min: int) -> tuple[UsageComparison, ...]:
        """Counted beside reported, of every charge settled since: by day, backend, model. Reads all of them."""
        ...

    def audit(self, *, after: str | None = None) -> AsyncGenerator[SubscriberLedger, None]:
        """The books of every subscriber, or of all after one, by id, in one consistent view of the store."""
        ...

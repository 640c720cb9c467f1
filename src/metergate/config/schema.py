"""The shape of the configuration file: every table and key, with its default and its bounds."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from metergate.core.addresses import check_address, check_listen_address, check_url
from metergate.core.embedding import NUMBERS_MAX
from metergate.core.parameters import Parameter
from metergate.core.rating import RateCard
from metergate.core.times import time_us_of
from metergate.core.usage import TokenClass

# The largest context and the highest price: their product is 10^18, the highest cost of one request before it is
# divided by a million. That is below AMOUNT_MICROCREDITS_MAX, so no sum of a request can leave 64 bits.
CONTEXT_TOKENS_MAX = 10_000_000
PRICE_MICROCREDITS_MAX = 100_000_000_000

# One segment of a resource name (models/{model}): what a URL and a metric label carry unescaped.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


def _time(time: datetime) -> datetime:
    time_us_of(time)
    return time


Id = Annotated[str, StringConstraints(pattern=rf"^{ID_PATTERN}$")]
ListenAddress = Annotated[str, AfterValidator(check_listen_address)]
Address = Annotated[str, AfterValidator(check_address)]
Url = Annotated[str, StringConstraints(max_length=2_048), AfterValidator(check_url)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)]
Time = Annotated[AwareDatetime, AfterValidator(_time)]
Price = Annotated[int, Field(ge=0, le=PRICE_MICROCREDITS_MAX)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Table(BaseModel):
    """A table of the file: no key but its own, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ListenerTls(Table):
    """The listener's certificates: PEM files, relative to the configuration file, read again when they change."""

    certificate_path: Text  # the listener's own certificate, then its intermediates
    key_path: Text  # unencrypted, and closed to other users
    client_ca_path: Text | None = None  # authorities of apps' certificates, then required; None: apps need none


class Listener(Table):
    """Where apps call."""

    address: ListenAddress = (
        "127.0.0.1:50051"  # only this machine until the operator says otherwise; gRPC's customary port
    )
    tls: ListenerTls | None = None  # None: plaintext
    plaintext_beyond_loopback: bool = False  # True: what stands before the gateway ends TLS


class Store(Table):
    """Where the ledger is."""

    path: Text  # of the SQLite file, relative to the configuration file
    # The writer's cache. A million wallets are 165 MB, which are read at start; twice as much keeps most of them there.
    # A small ledger fills none of it.
    cache_mebibytes: int = Field(default=512, ge=16, le=65_536)
    # The filter that tells of a new request, from memory, that it was never charged. For 16 million charges 32 MiB are
    # 16 bits a charge: of 1,000 new requests 5 are looked for in the file in vain; of twice as many charges 33, of four
    # times 171. With another size it is made anew beside the next start's work.
    request_filter_mebibytes: int = Field(default=32, ge=1, le=16_384)


class Limits(Table):
    """What is bounded, and by how much (L10)."""

    # gRPC's own default: a 128k-token prompt of Chinese text is below 1 MiB, so that real requests never meet it.
    message_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    # Requests at once; more are refused before any work is done for them. Two hundred streams of 50 tokens a second
    # fill a core: beyond a thousand, each more would slow all, and a backend's connections (1,024) run out.
    requests_max: int = Field(default=1_000, ge=1, le=100_000)
    # Calls at once of all services, requests included; more are refused before anything is read of them. At 100 kB a
    # call this is 400 MB.
    calls_max: int = Field(default=4_000, ge=2, le=1_000_000)
    # Credit set aside ahead of delivery: small, because other requests of the wallet need credit too; large enough that
    # a stream of 50 tokens a second extends its reservation about once a second.
    slice_tokens: int = Field(default=64, ge=1, le=65_536)
    # What one delivery holds at most, and so the most that a crash can debit without delivering (L5): a screen of text.
    delivery_characters_max: int = Field(default=2_048, ge=16, le=65_536)
    # Read from the backend but not yet delivered: what a slow app can make the operator pay for in vain.
    read_ahead_characters_max: int = Field(default=8_192, ge=16, le=1_048_576)
    # A long prompt on a busy backend waits tens of seconds for its first token.
    first_token_seconds_max: Seconds = 60.0
    # A backend that has begun and says nothing for this long is stuck.
    between_tokens_seconds_max: Seconds = 30.0
    # A request's whole time. A grant that expires while reserved is honoured for no longer than this.
    request_seconds_max: Seconds = 600.0
    # Kubernetes kills 30 s after SIGTERM; closing what is left takes the rest.
    drain_seconds_max: Seconds = 20.0
    # How often grants whose time is over are looked for, of wallets that nobody changes: bookkeeping, no hurry.
    expiry_sweep_seconds: Seconds = 60.0
    # How long the text of a charged request is kept for a retry, in memory only: time enough for an app to reconnect.
    replay_seconds: Seconds = 120.0
    # What those texts hold in all: about a thousand long answers.
    replay_characters_max: int = Field(default=4_000_000, ge=0, le=4_000_000_000)


class Retention(Table):
    """How long what is done with is kept."""

    # A closed reservation only says again what its charge says: a week for whoever looks into a difference.
    closed_reservation_days: int = Field(default=7, ge=1, le=3_650)


class Audit(Table):
    """How the books are watched while the gateway serves."""

    # Subscribers of one round; 0: none are audited. A round of small ones takes a tenth of a second.
    sample_subscribers: int = Field(default=100, ge=0, le=100_000)
    interval_seconds: Seconds = 60.0
    stop_admissions_on_difference: bool = False  # True: then nothing is admitted until the gateway is restarted


class Metrics(Table):
    """Where Prometheus and health checks ask, over HTTP."""

    # "" or None: nowhere. Only this machine until the operator says otherwise.
    address: Annotated[ListenAddress | None, BeforeValidator(lambda text: text or None)] = "127.0.0.1:9464"


class Logs(Table):
    """What the process writes to stderr."""

    format: Literal["auto", "json", "text"] = "auto"  # auto: text where stderr is a terminal, else JSON
    level: Literal["debug", "info", "warning", "error"] = "info"  # info has one line a request


class Traces(Table):
    """Where OpenTelemetry spans go."""

    endpoint: Url | None = None  # of an OTLP collector that takes HTTP: http://127.0.0.1:4318; None: no spans
    sample_ratio: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)  # share of traces that is recorded


class ContentPolicy(Table):
    """Who decides whether a piece of an answer may be delivered. Without a URL nobody is asked."""

    url: Url | None = None  # of a webhook: docs/guides/content-policy.md; https beyond this machine
    # Each delivery waits for the verdict, and fails without one: well above what a healthy webhook takes.
    timeout_seconds: float = Field(default=2.0, gt=0, le=60.0, allow_inf_nan=False)
    # The end of what was allowed before, sent along, of each kind: enough to see what a sentence began with.
    context_characters: int = Field(default=2_000, ge=0, le=65_536)


class _BackendTable(Table):
    api_key_env: Text | None = None  # name of the environment variable that holds its key; None: it takes none
    # What it takes of what a request may set, by paths in an Inference. A request is refused what one of its model's
    # backends does not take. None: what its kind's protocol documents.
    parameters: list[Annotated[Parameter, Field(strict=False)]] | None = None
    # Within a data centre a connection takes milliseconds; beyond this the next backend is tried.
    connect_timeout_seconds: float = Field(default=5.0, ge=0.1, le=60.0, allow_inf_nan=False)
    # What it works on at once; more wait. As many as one gateway process runs by default: a backend's own number, from
    # its slots or its batch, is the operator's to say.
    requests_max: int = Field(default=1_024, ge=1, le=65_536)
    # What waits for it, and how long; more are refused. A request that waits has its credit reserved.
    queue_max: int = Field(default=64, ge=0, le=65_536)
    queue_seconds_max: Seconds = 5.0
    # PEM file of the authorities that it must prove itself to over TLS; None: the public ones.
    ca_path: Text | None = None
    # True: its key may cross the network readable, because something else protects it on the way.
    plaintext_beyond_loopback: bool = False


class OpenAIBackendTable(_BackendTable):
    """A server that speaks OpenAI's HTTP protocol."""

    kind: Literal["openai"]
    url: Url  # up to and including the version: http://127.0.0.1:8080/v1
    stream: bool = True  # False: the server cannot stream; the answer is asked for whole
    include_usage: bool = True  # False: the server refuses stream_options
    chunk_usage: bool = False  # True: ask for usage with every chunk (vLLM, SGLang): less is captured meanwhile
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = (
        "max_tokens"  # newer OpenAI models take the latter
    )
    # How embeddings are asked for: their bytes, or numbers as text for servers that refuse base64.
    vector_encoding: Literal["base64", "float"] = "base64"
    # "2": many answers share a connection; over https the server must offer h2, over http it must expect it at once.
    http_version: Literal["1.1", "2"] = "1.1"
    # What a look asks for, from the root of the host: "/health". None: the list of models, {url}/models.
    health_path: Annotated[str, StringConstraints(pattern=r"^/[!-~]{0,255}$")] | None = None


class _ChannelTable(_BackendTable):
    address: Address
    tls: bool = False  # True: the backend must prove that it is the host of its address
    # What the gateway proves to the backend: its certificate, then its intermediates, and its unencrypted key; PEM
    # files, both or neither. None: it shows none.
    certificate_path: Text | None = None
    key_path: Text | None = None


class GrpcBackendTable(_ChannelTable):
    """A server that implements metergate.v1.BackendService."""

    kind: Literal["grpc"]


class EngineBackendTable(_ChannelTable):
    """An engine that takes and gives token ids over gRPC: vLLM's or SGLang's own protocol. It runs one model."""

    kind: Literal["vllm", "sglang"]


class TokenizerFile(Table):
    """The counting rule of a model."""

    kind: Literal["gguf", "tokenizer_json", "tiktoken"]
    path: Text  # relative to the configuration file
    pattern: Text | None = None  # how a tiktoken vocabulary splits text: o200k_base, cl100k_base, qwen or qwen3.5
    prompt_rule: Literal["template", "openai"] = "template"  # the model's chat template, or OpenAI's published rule
    # Like the rule, only of models that chat. A Jinja file, or a tokenizer_config.json. None: the one in the
    # vocabulary's own file, or beside it.
    chat_template_path: Text | None = None


class PromptBoundTable(Table):
    """What the template of a model that its backend counts may add to a prompt's own text, in tokens at most.

    More than it adds is only captured for a while; what it adds beyond is the operator's cost.
    """

    # Templates begin with a date, a system prompt of their own or how to use tools: the longest known take about 200.
    request_tokens_max: int = Field(default=256, ge=0, le=100_000)
    # A role and its marks around each message, and a tool's frame of JSON, take three to ten.
    message_tokens_max: int = Field(default=16, ge=0, le=10_000)


class ModelTable(Table):
    """A model on sale."""

    display_name: Text | None = None  # None: its id
    provider: Id  # its developer, who is paid
    task: Literal["chat", "embedding"] = "chat"
    dimensions: int | None = Field(
        default=None, ge=1, le=NUMBERS_MAX
    )  # numbers of a vector; only of an embedding model
    dimensions_selectable: bool = False  # True: a request may ask its backends for fewer
    # Prompt and completion together; of an embedding model: one input, special tokens included.
    context_tokens: int = Field(ge=2, le=CONTEXT_TOKENS_MAX)
    backends: list[Id] = Field(min_length=1, max_length=64)
    # A backend's part of the requests; absent: 1; 0: it stands by, for when no other can take one.
    backend_weights: dict[Id, Annotated[int, Field(ge=0, le=1_000)]] = {}
    backend_models: dict[Id, Text] = {}  # what a backend itself calls the model; absent: its id here
    counting: Literal["TOKENIZER", "TOKEN_IDS", "BACKEND"]
    tokenizer: TokenizerFile | None = None  # None with BACKEND only
    prompt_bound: PromptBoundTable | None = None  # with BACKEND; None: its defaults
    # How the raw text of a model that is counted by its token ids tells reasoning: "think", where it may begin with
    # <think>...</think>; "think_open", where its chat template ends with <think>; None: all of it is content.
    reasoning: Literal["think", "think_open"] | None = None
    # How far the reported completion may be from the counted one without a flag: many count an end-of-turn token.
    usage_tolerance_tokens: int = Field(default=1, ge=0, le=1_000)


class Prices(Table):
    """Microcredits per 1,000,000 tokens, by class."""

    prompt: Price
    completion: Price | None = None  # of every model that chats, and of no other
    cached_prompt: Price | None = None  # None: as prompt
    reasoning: Price | None = None  # None: as completion

    def by_class(self) -> tuple[tuple[TokenClass, int], ...]:
        """Every class that the model uses with its price."""
        prices = {
            TokenClass.PROMPT: self.prompt,
            TokenClass.CACHED_PROMPT: self.prompt if self.cached_prompt is None else self.cached_prompt,
            TokenClass.COMPLETION: self.completion,
            TokenClass.REASONING: self.completion if self.reasoning is None else self.reasoning,
        }
        return tuple((token_class, price) for token_class, price in prices.items() if price is not None)


class RateCardTable(Table):
    """The prices of one model from a time on. Once served it is immutable: change a price with a new card."""

    id: Id
    model: Id
    effective_time: Time  # inclusive
    expire_time: Time | None = None  # exclusive; None: until the next card takes effect
    microcredits_per_million_tokens: Prices

    def card(self) -> RateCard:
        """The same in the domain's words."""
        return RateCard(
            rate_card_id=self.id,
            model_id=self.model,
            effective_time_us=time_us_of(self.effective_time),
            expire_time_us=None if self.expire_time is None else time_us_of(self.expire_time),
            prices=self.microcredits_per_million_tokens.by_class(),
        )


BackendTable = Annotated[OpenAIBackendTable | GrpcBackendTable | EngineBackendTable, Field(discriminator="kind")]


class ConfigFile(Table):
    """The whole file."""

    listener: Listener = Listener()
    store: Store
    limits: Limits = Limits()
    retention: Retention = Retention()
    audit: Audit = Audit()
    metrics: Metrics = Metrics()
    logs: Logs = Logs()
    traces: Traces = Traces()
    content_policy: ContentPolicy = ContentPolicy()
    backends: dict[Id, BackendTable] = Field(min_length=1)
    models: dict[Id, ModelTable] = Field(min_length=1)
    rate_cards: list[RateCardTable] = Field(min_length=1)

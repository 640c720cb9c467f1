"""The one configuration file: its shape, its defaults and what makes it wrong. The only reader of the environment.

Every problem of a file is found before anything starts, and every one names its key. Nothing is guessed: an unknown key
is a problem, because a mistyped limit or price that is silently ignored costs somebody money.
"""

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from metergate.core.addresses import check_address, check_listen_address, check_url, is_loopback
from metergate.core.catalog import Catalog, Model
from metergate.core.errors import ConfigInvalid, ConfigProblem, RateCardInvalid
from metergate.core.rating import RateCard, check_schedule
from metergate.core.times import time_us_of
from metergate.core.usage import CountingSource, TokenClass
from metergate.environment import EnvironmentSource, Key

# The largest context and the highest price: their product is 10^18, the highest cost of one request before it is
# divided by a million. That is below AMOUNT_MICROCREDITS_MAX, so no sum of a request can leave 64 bits.
CONTEXT_TOKENS_MAX = 10_000_000
PRICE_MICROCREDITS_MAX = 100_000_000_000

# One segment of a resource name (models/{model}): what a URL and a metric label carry unescaped.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

# A configuration is read by people; a file beyond this is the wrong file.
FILE_BYTES_MAX = 1024 * 1024


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


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ListenerTls(_Table):
    """The listener's certificates: PEM files, relative to the configuration file, read again when they change."""

    certificate_path: Text  # the listener's own certificate, then its intermediates
    key_path: Text  # unencrypted, and closed to other users
    client_ca_path: Text | None = None  # authorities of apps' certificates, then required; None: apps need none


class Listener(_Table):
    """Where apps call."""

    address: ListenAddress = (
        "127.0.0.1:50051"  # only this machine until the operator says otherwise; gRPC's customary port
    )
    tls: ListenerTls | None = None  # None: plaintext
    plaintext_beyond_loopback: bool = False  # True: what stands before the gateway ends TLS


class Store(_Table):
    """Where the ledger is."""

    path: Text  # of the SQLite file, relative to the configuration file


class Limits(_Table):
    """What is bounded, and by how much (L10)."""

    # gRPC's own default: a 128k-token prompt of Chinese text is below 1 MiB, so that real requests never meet it.
    message_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    # Requests at once; more are refused before any work is done for them. Two hundred streams of 50 tokens a second
    # fill a core: beyond a thousand, each more would slow all, and a backend's connections (1,024) run out.
    requests_max: int = Field(default=1_000, ge=1, le=100_000)
    # Calls at once of all services. gRPC itself refuses more, with a status that names no reason: so it lies well above
    # requests_max, and an app that is refused is told why. At 100 kB a call this is 400 MB.
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
    # How long the text of a charged request is kept for a retry, in memory only: time enough for an app to reconnect.
    replay_seconds: Seconds = 120.0
    # What those texts hold in all: about a thousand long answers.
    replay_characters_max: int = Field(default=4_000_000, ge=0, le=4_000_000_000)


class Metrics(_Table):
    """Where Prometheus and health checks ask, over HTTP."""

    # "" or None: nowhere. Only this machine until the operator says otherwise.
    address: Annotated[ListenAddress | None, BeforeValidator(lambda text: text or None)] = "127.0.0.1:9464"


class Logs(_Table):
    """What the process writes to stderr."""

    format: Literal["auto", "json", "text"] = "auto"  # auto: text where stderr is a terminal, else JSON
    level: Literal["debug", "info", "warning", "error"] = "info"  # info has one line a request


class Traces(_Table):
    """Where OpenTelemetry spans go."""

    endpoint: Url | None = None  # of an OTLP collector that takes HTTP: http://127.0.0.1:4318; None: no spans
    sample_ratio: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)  # share of traces that is recorded


class _BackendTable(_Table):
    api_key_env: Text | None = None  # name of the environment variable that holds its key; None: it takes none
    # Within a data centre a connection takes milliseconds; beyond this the next backend is tried.
    connect_timeout_seconds: float = Field(default=5.0, ge=0.1, le=60.0, allow_inf_nan=False)


class OpenAIBackendTable(_BackendTable):
    """A server that speaks OpenAI's HTTP protocol."""

    kind: Literal["openai"]
    url: Url  # up to and including the version: http://127.0.0.1:8080/v1
    stream: bool = True  # False: the server cannot stream; the answer is asked for whole
    include_usage: bool = True  # False: the server refuses stream_options
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = (
        "max_tokens"  # newer OpenAI models take the latter
    )
    # Each carries one answer: as many as one gateway process streams at once.
    connections_max: int = Field(default=1_024, ge=1, le=65_536)


class GrpcBackendTable(_BackendTable):
    """A server that implements metergate.v1.BackendService."""

    kind: Literal["grpc"]
    address: Address
    tls: bool = False  # True: the backend must prove that it is the host of its address
    ca_path: Text | None = None  # PEM file of the authorities it must prove it to; None: the public ones


class TokenizerFile(_Table):
    """The counting rule of a model."""

    kind: Literal["gguf", "tokenizer_json", "tiktoken"]
    path: Text  # relative to the configuration file
    pattern: Text | None = None  # how a tiktoken vocabulary splits text: o200k_base, cl100k_base, qwen or qwen3.5
    prompt_rule: Literal["template", "openai"] = "template"  # the model's chat template, or OpenAI's published rule
    # A Jinja file, or a tokenizer_config.json. None: the one in the vocabulary's own file, or beside it.
    chat_template_path: Text | None = None


class ModelTable(_Table):
    """A model on sale."""

    display_name: Text | None = None  # None: its id
    provider: Id  # its developer, who is paid
    context_tokens: int = Field(ge=2, le=CONTEXT_TOKENS_MAX)  # prompt and completion together
    backends: list[Id] = Field(min_length=1, max_length=64)  # in order of preference
    backend_models: dict[Id, Text] = {}  # what a backend itself calls the model; absent: its id here
    counting: Literal["TOKENIZER"]
    tokenizer: TokenizerFile
    # How far the reported completion may be from the counted one without a flag: many count an end-of-turn token.
    usage_tolerance_tokens: int = Field(default=1, ge=0, le=1_000)


class Prices(_Table):
    """Microcredits per 1,000,000 tokens, by class."""

    prompt: Price
    completion: Price
    cached_prompt: Price | None = None  # None: as prompt
    reasoning: Price | None = None  # None: as completion

    def by_class(self) -> tuple[tuple[TokenClass, int], ...]:
        """Every class with its price."""
        prices = {
            TokenClass.PROMPT: self.prompt,
            TokenClass.CACHED_PROMPT: self.prompt if self.cached_prompt is None else self.cached_prompt,
            TokenClass.COMPLETION: self.completion,
            TokenClass.REASONING: self.completion if self.reasoning is None else self.reasoning,
        }
        return tuple((token_class, prices[token_class]) for token_class in TokenClass)


class RateCardTable(_Table):
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


BackendTable = Annotated[OpenAIBackendTable | GrpcBackendTable, Field(discriminator="kind")]


class _File(_Table):
    listener: Listener = Listener()
    store: Store
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    logs: Logs = Logs()
    traces: Traces = Traces()
    backends: dict[Id, BackendTable] = Field(min_length=1)
    models: dict[Id, ModelTable] = Field(min_length=1)
    rate_cards: list[RateCardTable] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration that was found right, with its paths resolved and its secrets read."""

    file: Path
    listener: Listener
    store_path: Path
    limits: Limits
    metrics: Metrics
    logs: Logs
    traces: Traces
    backends: Mapping[str, OpenAIBackendTable | GrpcBackendTable]
    models: Mapping[str, ModelTable]
    rate_cards: tuple[RateCard, ...]
    api_keys: Mapping[str, str] = field(repr=False)  # by backend id; absent: the backend takes none

    def model_names(self, backend_id: str) -> dict[str, str]:
        """What a backend itself calls the models that it runs, by their ids here."""
        return {
            model_id: model.backend_models.get(backend_id, model_id)
            for model_id, model in self.models.items()
            if backend_id in model.backends
        }

    def resolve(self, path: str) -> Path:
        """A path of the file, which is relative to the file."""
        return self.file.parent / path


def load_config(path: Path) -> Config:
    """Read and check file and environment; ConfigInvalid names everything that is wrong with them."""
    return _config_of(path, _load(path).file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value in effect."""

    key: tuple[str | int, ...]  # ("limits", "slice_tokens"), ("rate_cards", 0, "id")
    value: object  # None: not set
    source: str  # "file", "default", or the name of the environment variable


def settings_in_effect(path: Path) -> list[Setting]:
    """Every key with its value and where that came from, in the order of the schema; ConfigInvalid as ``load_config``.

    There is no secret among them: keys are named by ``api_key_env``, and URLs hold none.
    """
    loaded = _load(path)
    return [Setting(key=key, value=value, source=_source_of(key, loaded)) for key, value in _leaves((), loaded.file)]


def needing_restart(old: Config, new: Config) -> list[ConfigProblem]:
    """The keys that differ and are only read at start."""
    problem = "is only read at start: restart the gateway, or change it back"
    reloaded = {"file", "backends", "models", "rate_cards", "api_keys"}
    return [
        ConfigProblem(".".join(map(str, (*section, *key))), problem)
        for section, before, after in (
            (("store", "path") if name == "store_path" else (name,), getattr(old, name), getattr(new, name))
            for name in (field.name for field in fields(Config))
            if name not in reloaded
        )
        for key in _differences(before, after)
    ]


def _differences(before: object, after: object) -> list[tuple[str | int, ...]]:
    old, new = dict(_leaves((), before)), dict(_leaves((), after))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _config_of(path: Path, file: _File) -> Config:
    return Config(
        file=path,
        listener=file.listener,
        store_path=path.parent / file.store.path,
        limits=file.limits,
        metrics=file.metrics,
        logs=file.logs,
        traces=file.traces,
        backends=file.backends,
        models=file.models,
        rate_cards=tuple(table.card() for table in file.rate_cards),
        api_keys={backend_id: key for backend_id, backend in file.backends.items() if (key := _api_key(backend))},
    )


def catalog_of(config: Config) -> Catalog:
    """The models on sale, with their prices in order of effect."""
    return Catalog(
        {
            model_id: Model(
                model_id=model_id,
                display_name=table.display_name or model_id,
                provider_id=table.provider,
                context_tokens=table.context_tokens,
                counting_source=CountingSource(table.counting),
                backend_ids=tuple(table.backends),
                rate_cards=check_schedule([card for card in config.rate_cards if card.model_id == model_id]),
                usage_tolerance_tokens=table.usage_tolerance_tokens,
            )
            for model_id, table in config.models.items()
        }
    )


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """What was read, and found right."""

    file: _File
    written: Mapping[str, Any]  # in the file
    overrides: Mapping[str, Any]  # in the environment, in the same shape
    variables: Mapping[Key, str]  # names, by what they stand for


def _load(path: Path) -> _Loaded:
    written = _read(path)
    source = EnvironmentSource(_File, written)
    overrides = source()
    document = _overridden(written, overrides)
    problems = [
        *(
            ConfigProblem(name, "stands for no key of the configuration", variable=name)
            for name in source.unknown()
            if name not in _names_of_secrets(document)
        ),
    ]
    try:
        file = _File.model_validate(document)
    except ValidationError as exc:
        problems += [_problem_of(error, document) for error in exc.errors()]
        raise ConfigInvalid(path, *_with_variables(problems, source.variables)) from None
    problems += [
        *_semantic_problems(file, path.parent),
        *limit_problems(file.limits, file.models),
        *_environment_problems(file.backends),
        *_installation_problems(file),
    ]
    if problems:
        raise ConfigInvalid(path, *_with_variables(problems, source.variables))
    return _Loaded(file=file, written=written, overrides=overrides, variables=source.variables)


def _overridden(written: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The file with the environment's values in the place of its own; tables are merged, lists replaced."""
    return {
        **written,
        **{
            name: _overridden(written[name], value)
            if isinstance(value, Mapping) and isinstance(written.get(name), Mapping)
            else value
            for name, value in overrides.items()
        },
    }


def _names_of_secrets(document: Mapping[str, Any]) -> set[str]:
    """Variables that hold backends' keys; they may begin as ours do."""
    backends = document.get("backends")
    tables = backends.values() if isinstance(backends, Mapping) else ()
    return {str(table.get("api_key_env")) for table in tables if isinstance(table, Mapping)}


def _with_variables(problems: Sequence[ConfigProblem], variables: Mapping[Key, str]) -> Iterator[ConfigProblem]:
    """The problems, with the variable that the wrong value came from."""
    by_key = sorted((".".join(key), name) for key, name in variables.items())
    for problem in problems:
        names = [name for key, name in by_key if re.match(rf"{re.escape(key)}($|[.\[])", problem.key)]
        yield replace(problem, variable=names[-1]) if names else problem


def _leaves(key: tuple[str | int, ...], value: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves((*key, name), getattr(value, name))
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _leaves((*key, name), child)
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        for index, child in enumerate(value):
            yield from _leaves((*key, index), child)
    else:
        yield key, value


def _source_of(key: tuple[str | int, ...], loaded: _Loaded) -> str:
    if _has(loaded.overrides, key):
        names = {
            key[: len(set_key)]: name for set_key, name in loaded.variables.items() if key[: len(set_key)] == set_key
        }
        return names[max(names, key=len)]
    return "file" if _has(loaded.written, key) else "default"


def _has(document: object, key: Sequence[str | int]) -> bool:
    here: Any = document
    for part in key:
        is_there = part < len(here) if isinstance(here, list) and isinstance(part, int) else False
        if not is_there and not (isinstance(here, Mapping) and part in here):
            return False
        here = here[part]
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigInvalid(path, ConfigProblem("", f"it cannot be read: {exc.strerror}")) from exc
    if len(content) > FILE_BYTES_MAX:
        raise ConfigInvalid(path, ConfigProblem("", f"it is larger than {FILE_BYTES_MAX:,} bytes"))
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as exc:
        raise ConfigInvalid(path, ConfigProblem("", f"it is not UTF-8 text: byte {exc.start} is wrong")) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigInvalid(path, ConfigProblem("", f"it is not TOML: {exc}")) from exc
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits, thousands of brackets
        raise ConfigInvalid(path, ConfigProblem("", f"it cannot be read as TOML: {exc}")) from exc


def _api_key(backend: OpenAIBackendTable | GrpcBackendTable) -> str:
    """What its variable holds; "" if it names none or the variable holds nothing."""
    return os.environ.get(backend.api_key_env, "") if backend.api_key_env else ""


# --- what is wrong --------------------------------------------------------------------------------------------------

_SHAPE_PROBLEMS = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "union_tag_not_found": "needs a kind: {expected_kinds}",
    "union_tag_invalid": "has an unknown kind {tag!r}: it must be {expected_tags}",
    "timezone_aware": "needs a time zone, such as 2026-01-01T00:00:00+08:00",
    "too_short": "needs at least {min_length}",
}


def _problem_of(error: ErrorDetails, document: Mapping[str, Any]) -> ConfigProblem:
    key = _key_of(error["loc"], document)
    context = {"expected_kinds": "'openai' or 'grpc'", **error.get("ctx", {})}
    if error["type"] == "literal_error" and key.endswith(".counting"):
        return ConfigProblem(key, "must be 'TOKENIZER': the other counting sources are not built yet")
    template = _SHAPE_PROBLEMS.get(error["type"])
    if template is not None:
        return ConfigProblem(key, template.format_map(context))
    if error["type"] == "string_pattern_mismatch":
        return ConfigProblem(key, "must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ConfigProblem(key, f"{message[:1].lower()}{message[1:]}")


def _key_of(location: Sequence[int | str], document: Mapping[str, Any]) -> str:
    """The key as the file has it; the name of a union's chosen branch, which pydantic inserts, is left out."""
    key = ""
    here: Any = document
    for index, part in enumerate(location):
        if isinstance(part, int):
            key, here = f"{key}[{part}]", here[part]
        elif isinstance(here, Mapping) and part in here:
            key, here = f"{key}.{part}".lstrip("."), here[part]
        elif index == len(location) - 1 and part != "[key]":
            key = f"{key}.{part}".lstrip(".")
    return key


def _environment_problems(backends: Mapping[str, OpenAIBackendTable | GrpcBackendTable]) -> Iterator[ConfigProblem]:
    for backend_id, backend in backends.items():
        if backend.api_key_env and not _api_key(backend):
            problem = f"the environment variable {backend.api_key_env} is not set"
            yield ConfigProblem(f"backends.{backend_id}.api_key_env", problem)


def _installation_problems(file: _File) -> Iterator[ConfigProblem]:
    if file.traces.endpoint is not None and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
        yield ConfigProblem("traces.endpoint", "needs OpenTelemetry: pip install 'metergate[otel]'")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False


def _semantic_problems(file: _File, folder: Path) -> Iterator[ConfigProblem]:
    if file.limits.calls_max <= file.limits.requests_max:
        yield ConfigProblem("limits.calls_max", f"must be above requests_max, which is {file.limits.requests_max}")
    yield from _plaintext_problems(file)
    priced = {table.model for table in file.rate_cards}
    for model_id, model in file.models.items():
        key = f"models.{model_id}"
        if model_id not in priced:
            yield ConfigProblem(key, "has no price: add a [[rate_cards]] for it")
        yield from _backend_problems(key, model, file.backends)
        yield from _tokenizer_problems(f"{key}.tokenizer", model.tokenizer, folder)
    yield from _rate_card_problems(file)


def limit_problems(limits: Limits, models: Mapping[str, ModelTable]) -> Iterator[ConfigProblem]:
    """Limits that somebody set and that another one keeps from ever taking effect."""
    contradictions = [
        (name, "request_seconds_max", "a request ends before that")
        for name in ("first_token_seconds_max", "between_tokens_seconds_max", "drain_seconds_max")
    ]
    contradictions.append(
        ("delivery_characters_max", "read_ahead_characters_max", "a delivery holds only what was read ahead")
    )
    for name, bound, reason in contradictions:
        value, most = getattr(limits, name), getattr(limits, bound)
        if value > most and name in limits.model_fields_set:
            problem = (
                f"{value:g} is above limits.{bound}, which is {most:g}, and {reason}: lower the one or raise the other"
            )
            yield ConfigProblem(f"limits.{name}", problem)
    for model_id, model in models.items():
        if limits.slice_tokens >= model.context_tokens and "slice_tokens" in limits.model_fields_set:
            problem = (
                f"{limits.slice_tokens} is not below models.{model_id}.context_tokens, {model.context_tokens}, "
                "and a prompt takes at least one token: lower it"
            )
            yield ConfigProblem("limits.slice_tokens", problem)


def _plaintext_problems(file: _File) -> Iterator[ConfigProblem]:
    """Keys and prompts that anybody between could read."""
    listener = file.listener
    if listener.tls is not None and listener.plaintext_beyond_loopback:
        yield ConfigProblem("listener.plaintext_beyond_loopback", "contradicts [listener.tls]: leave one of them out")
    if listener.tls is None and not listener.plaintext_beyond_loopback and not is_loopback(listener.address):
        problem = (
            f"{listener.address} is beyond this machine, and apps' keys and prompts could be read on the way: "
            "add [listener.tls] or, if something before the gateway ends TLS, plaintext_beyond_loopback = true"
        )
        yield ConfigProblem("listener.address", problem)
    for backend_id, backend in file.backends.items():
        if not isinstance(backend, GrpcBackendTable):
            continue
        key = f"backends.{backend_id}"
        if backend.ca_path is not None and not backend.tls:
            yield ConfigProblem(f"{key}.ca_path", "is for TLS: add tls = true")
        if backend.api_key_env and not backend.tls and not is_loopback(backend.address):
            problem = f"its key would cross the network to {backend.address} readable: add tls = true"
            yield ConfigProblem(f"{key}.api_key_env", problem)


def _backend_problems(key: str, model: ModelTable, backends: Mapping[str, object]) -> Iterator[ConfigProblem]:
    for backend_id, times in Counter(model.backends).items():
        if backend_id not in backends:
            yield ConfigProblem(f"{key}.backends", f"there is no backend {backend_id!r}")
        if times > 1:
            yield ConfigProblem(f"{key}.backends", f"names {backend_id!r} {times} times")
    for backend_id in model.backend_models:
        if backend_id not in model.backends:
            yield ConfigProblem(f"{key}.backend_models", f"{backend_id!r} is no backend of this model")


def _tokenizer_problems(key: str, tokenizer: TokenizerFile, folder: Path) -> Iterator[ConfigProblem]:
    for name in ("path", "chat_template_path"):
        path = getattr(tokenizer, name)
        if path is not None and not os.path.isfile(folder / path):
            yield ConfigProblem(f"{key}.{name}", f"there is no file {folder / path}")


def _rate_card_problems(file: _File) -> Iterator[ConfigProblem]:
    for rate_card_id, times in Counter(table.id for table in file.rate_cards).items():
        if times > 1:
            yield ConfigProblem("rate_cards", f"the id {rate_card_id!r} is used {times} times")
    for index, table in enumerate(file.rate_cards):
        if table.model not in file.models:
            yield ConfigProblem(f"rate_cards[{index}].model", f"there is no model {table.model!r}")
    for model_id in file.models:
        try:
            check_schedule([table.card() for table in file.rate_cards if table.model == model_id])
        except RateCardInvalid as exc:
            yield ConfigProblem("rate_cards", f"the rate card {exc.rate_card_id!r} of {model_id!r}: {exc.problem}")

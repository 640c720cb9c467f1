"""What contradicts itself or the machine in a configuration: every problem names its key, and what cures it."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from metergate.config.schema import (
    BackendTable,
    ConfigFile,
    EngineBackendTable,
    GrpcBackendTable,
    Limits,
    ModelTable,
    OpenAIBackendTable,
    RateCardTable,
    TokenizerFile,
)
from metergate.core.addresses import is_loopback
from metergate.core.errors import ConfigProblem, RateCardInvalid
from metergate.core.rating import check_schedule
from metergate.environment import secret


def environment_problems(
    backends: Mapping[str, BackendTable],
) -> Iterator[ConfigProblem]:
    """Backends whose key is not in the environment."""
    for backend_id, backend in backends.items():
        if backend.api_key_env and not secret(backend.api_key_env):
            problem = f"the environment variable {backend.api_key_env} is not set"
            yield ConfigProblem(f"backends.{backend_id}.api_key_env", problem)


def installation_problems(file: ConfigFile) -> Iterator[ConfigProblem]:
    """What needs a library that is not installed."""
    if file.traces.endpoint is not None and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
        yield ConfigProblem("traces.endpoint", "needs OpenTelemetry: pip install 'metergate[otel]'")
    has_engines, has_http2 = _is_installed("smg_grpc_proto"), _is_installed("h2")
    for backend_id, backend in file.backends.items():
        if isinstance(backend, OpenAIBackendTable) and backend.http_version == "2" and not has_http2:
            problem = "\"2\" needs h2: pip install 'metergate[http2]'"
            yield ConfigProblem(f"backends.{backend_id}.http_version", problem)
        if isinstance(backend, EngineBackendTable) and not has_engines:
            problem = f"{backend.kind!r} needs its protocol's stubs: pip install 'metergate[engines]'"
            yield ConfigProblem(f"backends.{backend_id}.kind", problem)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False


def semantic_problems(file: ConfigFile, folder: Path) -> Iterator[ConfigProblem]:
    """Keys that are right by themselves and contradict each other or the files on disk."""
    if file.limits.calls_max <= file.limits.requests_max:
        yield ConfigProblem("limits.calls_max", f"must be above requests_max, which is {file.limits.requests_max}")
    yield from _plaintext_problems(file)
    if file.metrics.address is not None and _are_one_port(file.metrics.address, file.listener.address):
        problem = f"{file.metrics.address} has the port of listener.address: give it another"
        yield ConfigProblem("metrics.address", problem)
    for backend_id, backend in file.backends.items():
        request_seconds_max = file.limits.request_seconds_max
        if backend.queue_seconds_max > request_seconds_max and "queue_seconds_max" in backend.model_fields_set:
            problem = f"is above limits.request_seconds_max, which is {request_seconds_max:g}: no request waits so long"
            yield ConfigProblem(f"backends.{backend_id}.queue_seconds_max", problem)
    for backend_id, backend in file.backends.items():
        if (
            isinstance(backend, OpenAIBackendTable)
            and backend.chunk_usage
            and not (backend.stream and backend.include_usage)
        ):
            problem = "is asked for in stream_options: it needs stream and include_usage"
            yield ConfigProblem(f"backends.{backend_id}.chunk_usage", problem)
    priced = {table.model for table in file.rate_cards}
    for model_id, model in file.models.items():
        key = f"models.{model_id}"
        if model_id not in priced:
            yield ConfigProblem(key, "has no price: add a [[rate_cards]] for it")
        yield from _backend_problems(key, model, file.backends)
        yield from _token_id_problems(key, model, file.backends)
        yield from _counting_problems(key, model, folder)
        yield from _task_problems(key, model)
    yield from _rate_card_problems(file)


def _are_one_port(address: str, other: str) -> bool:
    """Whether both cannot be listened on; port 0 is any that is free."""
    (host, _, port), (other_host, _, other_port) = address.rpartition(":"), other.rpartition(":")
    everywhere = {"0.0.0.0", "[::]"}  # noqa: S104 - what is recognised, not what is listened on
    return int(port) == int(other_port) != 0 and (host == other_host or bool(everywhere & {host, other_host}))


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
        is_chat = model.task == "chat"
        if is_chat and limits.slice_tokens >= model.context_tokens and "slice_tokens" in limits.model_fields_set:
            problem = (
                f"{limits.slice_tokens} is not below models.{model_id}.context_tokens, {model.context_tokens}, "
                "and a prompt takes at least one token: lower it"
            )
            yield ConfigProblem("limits.slice_tokens", problem)


def _plaintext_problems(file: ConfigFile) -> Iterator[ConfigProblem]:
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
        yield from _backend_plaintext_problems(f"backends.{backend_id}", backend)
    if (policy_url := file.content_policy.url) is not None:
        url = urlsplit(policy_url)
        address = url.netloc if url.port is not None else f"{url.netloc}:80"
        if url.scheme == "http" and not is_loopback(address):
            problem = f"the texts of answers would cross the network to {address} readable: use https"
            yield ConfigProblem("content_policy.url", problem)


def _backend_plaintext_problems(key: str, backend: BackendTable) -> Iterator[ConfigProblem]:
    if not isinstance(backend, OpenAIBackendTable):
        is_plain, address, cure = not backend.tls, backend.address, "add tls = true"
        yield from _grpc_tls_problems(key, backend)
    else:
        url = urlsplit(backend.url)
        is_plain, address, cure = url.scheme == "http", f"{url.netloc}", "use https"
        if backend.ca_path is not None and is_plain:
            yield ConfigProblem(f"{key}.ca_path", "is for TLS: use https")
        address = address if url.port is not None else f"{address}:80"
    if backend.plaintext_beyond_loopback and (not is_plain or is_loopback(address)):
        yield ConfigProblem(f"{key}.plaintext_beyond_loopback", "changes nothing here: leave it out")
    if backend.api_key_env and is_plain and not backend.plaintext_beyond_loopback and not is_loopback(address):
        problem = (
            f"its key would cross the network to {address} readable: {cure} or, if something else protects it on the "
            "way, add plaintext_beyond_loopback = true"
        )
        yield ConfigProblem(f"{key}.api_key_env", problem)


def _grpc_tls_problems(key: str, backend: GrpcBackendTable | EngineBackendTable) -> Iterator[ConfigProblem]:
    for name in ("ca_path", "certificate_path", "key_path"):
        if getattr(backend, name) is not None and not backend.tls:
            yield ConfigProblem(f"{key}.{name}", "is for TLS: add tls = true")
    if backend.certificate_path is None and backend.key_path is not None:
        yield ConfigProblem(f"{key}.certificate_path", "is missing: key_path is its key")
    if backend.certificate_path is not None and backend.key_path is None:
        yield ConfigProblem(f"{key}.key_path", "is missing: a certificate proves nothing without its key")


def _backend_problems(key: str, model: ModelTable, backends: Mapping[str, object]) -> Iterator[ConfigProblem]:
    for backend_id, times in Counter(model.backends).items():
        if backend_id not in backends:
            yield ConfigProblem(f"{key}.backends", f"there is no backend {backend_id!r}")
        if times > 1:
            yield ConfigProblem(f"{key}.backends", f"names {backend_id!r} {times} times")
    for name in ("backend_models", "backend_weights"):
        for backend_id in getattr(model, name):
            if backend_id not in model.backends:
                yield ConfigProblem(f"{key}.{name}", f"{backend_id!r} is no backend of this model")
    if not any(model.backend_weights.get(backend_id, 1) for backend_id in model.backends):
        yield ConfigProblem(f"{key}.backend_weights", "all of its backends stand by: give one a weight above 0")


def _counting_problems(key: str, model: ModelTable, folder: Path) -> Iterator[ConfigProblem]:
    """A counting source without what it needs, or with what it does not use."""
    if model.counting == "BACKEND":
        if model.tokenizer is not None:
            yield ConfigProblem(f"{key}.tokenizer", "is not used: with counting = 'BACKEND' its backends count")
        if model.task == "embedding":
            yield ConfigProblem(f"{key}.counting", "must be 'TOKENIZER' for embeddings: their prompts are all there is")
        return
    if model.prompt_bound is not None:
        yield ConfigProblem(f"{key}.prompt_bound", "is only used with counting = 'BACKEND'")
    if model.tokenizer is None:
        yield ConfigProblem(f"{key}.tokenizer", f"is missing: with counting = {model.counting!r} the gateway counts")
    else:
        yield from _tokenizer_problems(f"{key}.tokenizer", model.tokenizer, folder)


def _token_id_problems(key: str, model: ModelTable, backends: Mapping[str, object]) -> Iterator[ConfigProblem]:
    """What goes with token ids and what with texts: a model is counted by the one or the other."""
    counts_token_ids = model.counting == "TOKEN_IDS"
    for backend_id in model.backends:
        backend = backends.get(backend_id)
        if isinstance(backend, EngineBackendTable) and not counts_token_ids:
            problem = f'{backend_id!r} is an engine ({backend.kind}) that sends token ids: set counting = "TOKEN_IDS"'
            yield ConfigProblem(f"{key}.counting", problem)
        elif backend is not None and not isinstance(backend, EngineBackendTable) and counts_token_ids:
            problem = f"{backend_id!r} sends texts: TOKEN_IDS needs backends of kind 'vllm' or 'sglang'"
            yield ConfigProblem(f"{key}.backends", problem)
    if model.reasoning is not None and not counts_token_ids:
        problem = 'is for counting = "TOKEN_IDS": other backends tell reasoning from content themselves'
        yield ConfigProblem(f"{key}.reasoning", problem)


def _tokenizer_problems(key: str, tokenizer: TokenizerFile, folder: Path) -> Iterator[ConfigProblem]:
    for name in ("path", "chat_template_path"):
        path = getattr(tokenizer, name)
        if path is not None and not os.path.isfile(folder / path):
            yield ConfigProblem(f"{key}.{name}", f"there is no file {folder / path}")


def _task_problems(key: str, model: ModelTable) -> Iterator[ConfigProblem]:
    """Keys of chats on a model that embeds, and the other way round."""
    if model.task == "chat":
        for name in ("dimensions", "dimensions_selectable"):
            if getattr(model, name):
                yield ConfigProblem(f"{key}.{name}", 'is for vectors: add task = "embedding" or leave it out')
        return
    if model.dimensions is None:
        yield ConfigProblem(f"{key}.dimensions", "is missing: how many numbers a vector of the model has")
    if model.counting != "TOKENIZER":
        yield ConfigProblem(f"{key}.counting", 'must be "TOKENIZER": what is embedded is counted before it is sent')
    for name, default in (("prompt_rule", "template"), ("chat_template_path", None)):
        if model.tokenizer is not None and getattr(model.tokenizer, name) != default:
            yield ConfigProblem(f"{key}.tokenizer.{name}", "is for chats: a text that is embedded is counted by itself")


def _price_problems(index: int, table: RateCardTable, model: ModelTable) -> Iterator[ConfigProblem]:
    """Prices that are missing, or that nothing would ever cost."""
    key, prices = f"rate_cards[{index}].microcredits_per_million_tokens", table.microcredits_per_million_tokens
    if model.task == "chat" and prices.completion is None:
        yield ConfigProblem(f"{key}.completion", "is missing")
    if model.task == "embedding":
        for name in ("completion", "reasoning"):
            if getattr(prices, name) is not None:
                yield ConfigProblem(f"{key}.{name}", f"is for chats, and {table.model!r} embeds: leave it out")


def _rate_card_problems(file: ConfigFile) -> Iterator[ConfigProblem]:
    for rate_card_id, times in Counter(table.id for table in file.rate_cards).items():
        if times > 1:
            yield ConfigProblem("rate_cards", f"the id {rate_card_id!r} is used {times} times")
    for index, table in enumerate(file.rate_cards):
        if table.model not in file.models:
            yield ConfigProblem(f"rate_cards[{index}].model", f"there is no model {table.model!r}")
        else:
            yield from _price_problems(index, table, file.models[table.model])
    for model_id in file.models:
        try:
            check_schedule([table.card() for table in file.rate_cards if table.model == model_id])
        except RateCardInvalid as exc:
            yield ConfigProblem("rate_cards", f"the rate card {exc.rate_card_id!r} of {model_id!r}: {exc.problem}")

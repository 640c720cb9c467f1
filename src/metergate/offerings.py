"""Opens what the configuration puts on sale, and replaces it while requests run.

Whatever is used again is kept: a backend that did not change keeps its connections, the count of what it works on, and
how it has served of late. What is not, is closed when the last request that came in under it is settled.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self, TypeVar

from metergate.backends import engine, grpc, openai_request
from metergate.backends.engine import EngineBackend, EngineBackendOptions, EngineModel
from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.config import (
    BackendTable,
    Config,
    EngineBackendTable,
    GrpcBackendTable,
    ModelTable,
    OpenAIBackendTable,
    TokenizerFile,
    catalog_of,
)
from metergate.core.catalog import Catalog
from metergate.core.errors import CertificateInvalid, MetergateError, TokenizerInvalid
from metergate.core.parameters import Parameter
from metergate.core.usage import CountingSource
from metergate.edges.tls import read_authorities, read_own_certificate
from metergate.metering.offering import Offering
from metergate.metering.pool import Member, Pool, PoolLimits
from metergate.ports import Backend, PoolObserver, TokenCodec, Tokenizer
from metergate.tokenizers.open import TokenizerSpec, open_codec, open_tokenizer

BackendOptions = OpenAIBackendOptions | GrpcBackendOptions | EngineBackendOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An offering that nothing is wrong with, before its backends are opened."""

    catalog: Catalog
    tokenizers: Mapping[str, Tokenizer]  # by model id, of those that the gateway counts
    backends: Mapping[str, "BackendParts"]  # by backend id
    # By model id: of all that are counted by their token ids.
    codecs: Mapping[str, TokenCodec] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read all that it needs, in seconds; TokenizerInvalid or CertificateInvalid if that cannot be used."""
        codecs = _open_codecs(config)
        return cls(
            catalog=_catalog(config),
            tokenizers={**_open_tokenizers(config), **codecs},
            codecs=codecs,
            backends={backend_id: _backend_parts(config, backend_id, codecs) for backend_id in config.backends},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendParts:
    """A backend before it is opened."""

    options: BackendOptions
    limits: PoolLimits


class Offerings:
    """The offering of now, and those that requests still run under."""

    def __init__(self, parts: Parts, observer: PoolObserver) -> None:
        """Open the backends; to be closed."""
        self._parts = parts
        self._observer = observer
        self._leaving: dict[asyncio.Task[None], Offering] = {}
        members = {backend_id: _member(backend) for backend_id, backend in parts.backends.items()}
        self.current = self._offering(parts, members)

    def replace(self, parts: Parts) -> Offering:
        """Make another offering the one of now, and let the old one go when its last request is settled."""
        before = self.current
        members = {
            backend_id: before.pool.members[backend_id]
            if backend == self._parts.backends.get(backend_id)
            else _member(backend)
            for backend_id, backend in parts.backends.items()
        }
        self._parts, self.current = parts, self._offering(parts, members)
        leaving = asyncio.create_task(self._let_go(before))
        self._leaving[leaving] = before
        leaving.add_done_callback(self._leaving.pop)
        return self.current

    async def close(self) -> None:
        """Close every backend, those of running requests included."""
        offerings = [self.current, *self._leaving.values()]
        for leaving in self._leaving:
            leaving.cancel()
        for member in {member for offering in offerings for member in offering.pool.members.values()}:
            await member.backend.close()

    async def _let_go(self, offering: Offering) -> None:
        await offering.idle()
        others = [self.current, *(other for other in self._leaving.values() if other is not offering)]
        in_use = {member for other in others for member in other.pool.members.values()}
        for member in offering.pool.members.values():
            if member not in in_use:
                await member.backend.close()

    def _offering(self, parts: Parts, members: Mapping[str, Member]) -> Offering:
        pool = Pool(
            members,
            monotonic=asyncio.get_running_loop().time,
            chance=random.random,
            observer=self._observer,
        )
        return Offering(catalog=parts.catalog, tokenizers=parts.tokenizers, pool=pool, codecs=parts.codecs)


def _member(parts: BackendParts) -> Member:
    return Member(_open_backend(parts.options), parts.limits)


def _catalog(config: Config) -> Catalog:
    """The models on sale, each with what all of its backends take: a request may come to any of them."""
    catalog = catalog_of(config)
    taken = {backend_id: _parameters(table) for backend_id, table in config.backends.items()}
    return Catalog(
        {
            model_id: replace(
                model, parameters=frozenset.intersection(*(taken[backend_id] for backend_id in model.backend_ids))
            )
            for model_id, model in catalog.models.items()
        }
    )


def _parameters(table: BackendTable) -> frozenset[Parameter]:
    """What a backend takes: never what its protocol cannot say."""
    said, documented = grpc.PARAMETERS, grpc.PARAMETERS
    if isinstance(table, EngineBackendTable):
        said = documented = engine.VLLM_PARAMETERS if table.kind == "vllm" else engine.SGLANG_PARAMETERS
    elif isinstance(table, OpenAIBackendTable):
        said, documented = openai_request.PARAMETERS, openai_request.DOCUMENTED_PARAMETERS
    return documented if table.parameters is None else frozenset(table.parameters) & said


def _open_tokenizers(config: Config) -> dict[str, Tokenizer]:
    """The tokenizers of all that are counted by texts, by model id. TokenizerInvalid if one is unusable."""
    return _open_all(config, open_tokenizer, counts_token_ids=False)


def _open_codecs(config: Config) -> dict[str, TokenCodec]:
    """The tokenizers of all that are counted by token ids, by model id. TokenizerInvalid if one is unusable."""
    return _open_all(config, open_codec, counts_token_ids=True)


Opened = TypeVar("Opened")


def _open_all(
    config: Config, open_one: Callable[[TokenizerSpec], Opened], *, counts_token_ids: bool
) -> dict[str, Opened]:
    """Models that count alike share one."""
    opened: dict[TokenizerSpec, Opened] = {}
    by_model: dict[str, Opened] = {}
    for model_id, model in config.models.items():
        if model.tokenizer is not None and _counts_token_ids(model) is counts_token_ids:
            spec = _tokenizer_spec(config, model, model.tokenizer)
            if spec not in opened:
                opened[spec] = open_one(spec)
            by_model[model_id] = opened[spec]
    return by_model


def _counts_token_ids(model: ModelTable) -> bool:
    return CountingSource(model.counting) is CountingSource.TOKEN_IDS


def parts_problems(config: Config) -> Iterator[MetergateError]:
    """Everything that ``Parts.of`` would refuse."""
    wanted = {
        (_tokenizer_spec(config, model, model.tokenizer), _counts_token_ids(model)): None
        for model in config.models.values()
        if model.tokenizer is not None
    }
    for spec, counts_token_ids in wanted:
        try:
            (open_codec if counts_token_ids else open_tokenizer)(spec)
        except TokenizerInvalid as exc:
            yield exc
    for backend_id, table in config.backends.items():
        try:
            _ca_pem(config, backend_id, table)
            if not isinstance(table, OpenAIBackendTable):
                _own_pem(config, backend_id, table)
        except CertificateInvalid as exc:
            yield exc


def _tokenizer_spec(config: Config, model: ModelTable, file: TokenizerFile) -> TokenizerSpec:
    return TokenizerSpec(
        kind=file.kind,
        path=config.resolve(file.path),
        pattern=file.pattern,
        prompt_rule="none" if model.task == "embedding" else file.prompt_rule,
        chat_template_path=None if file.chat_template_path is None else config.resolve(file.chat_template_path),
    )


def _open_backend(options: BackendOptions) -> Backend:
    if isinstance(options, EngineBackendOptions):
        return EngineBackend(options)
    return GrpcBackend(options) if isinstance(options, GrpcBackendOptions) else OpenAIBackend(options)


def _backend_parts(config: Config, backend_id: str, codecs: Mapping[str, TokenCodec]) -> BackendParts:
    table = config.backends[backend_id]
    limits = PoolLimits(
        requests_max=table.requests_max, queue_max=table.queue_max, queue_seconds_max=table.queue_seconds_max
    )
    return BackendParts(options=_backend_options(config, backend_id, codecs), limits=limits)


def _backend_options(config: Config, backend_id: str, codecs: Mapping[str, TokenCodec]) -> BackendOptions:
    table = config.backends[backend_id]
    model_names = config.model_names(backend_id)
    api_key = config.api_keys.get(backend_id)
    if isinstance(table, GrpcBackendTable):
        return GrpcBackendOptions(
            backend_id=backend_id,
            address=table.address,
            model_names=model_names,
            api_key=api_key,
            connect_timeout_seconds=table.connect_timeout_seconds,
            embeds=any(config.models[model_id].task == "embedding" for model_id in model_names),
            tls=table.tls,
            ca_pem=_ca_pem(config, backend_id, table),
            own_pem=_own_pem(config, backend_id, table),
        )
    if isinstance(table, EngineBackendTable):
        return EngineBackendOptions(
            backend_id=backend_id,
            kind=table.kind,
            address=table.address,
            models={
                model_id: EngineModel(
                    name=name,
                    context_tokens=config.models[model_id].context_tokens,
                    token_ids_max=codecs[model_id].token_ids_max,
                )
                for model_id, name in model_names.items()
            },
            api_key=api_key,
            connect_timeout_seconds=table.connect_timeout_seconds,
            tls=table.tls,
            ca_pem=_ca_pem(config, backend_id, table),
            own_pem=_own_pem(config, backend_id, table),
        )
    return _openai_options(backend_id, table, model_names, api_key, _ca_pem(config, backend_id, table))


def _ca_pem(
    config: Config, backend_id: str, table: OpenAIBackendTable | GrpcBackendTable | EngineBackendTable
) -> bytes | None:
    """CertificateInvalid if the file of its authorities cannot be used; None: it proves itself to the public ones."""
    if table.ca_path is None:
        return None
    return read_authorities(f"backends.{backend_id}.ca_path", config.resolve(table.ca_path), datetime.now(UTC))


def _own_pem(
    config: Config, backend_id: str, table: GrpcBackendTable | EngineBackendTable
) -> tuple[bytes, bytes] | None:
    """The key and certificate that it is shown; CertificateInvalid if they cannot be used; None: it is shown none."""
    if table.certificate_path is None or table.key_path is None:
        return None
    return read_own_certificate(
        f"backends.{backend_id}",
        certificate_path=config.resolve(table.certificate_path),
        key_path=config.resolve(table.key_path),
        now=datetime.now(UTC),
    )


def _openai_options(
    backend_id: str,
    table: OpenAIBackendTable,
    model_names: Mapping[str, str],
    api_key: str | None,
    ca_pem: bytes | None,
) -> OpenAIBackendOptions:
    return OpenAIBackendOptions(
        backend_id=backend_id,
        url=table.url,
        model_names=model_names,
        api_key=api_key,
        connect_timeout_seconds=table.connect_timeout_seconds,
        stream=table.stream,
        include_usage=table.include_usage,
        chunk_usage=table.chunk_usage,
        max_tokens_field=table.max_tokens_field,
        vector_encoding=table.vector_encoding,
        connections_max=table.requests_max,
        ca_pem=None if ca_pem is None else ca_pem.decode("ascii", "replace"),
        health_path=table.health_path,
        http_version=table.http_version,
    )

"""Opens what the configuration puts on sale, and replaces it while requests run.

Whatever is used again is kept: a backend that did not change keeps its connections. What is not, is closed when the
last request that came in under it is settled.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from metergate.backends import grpc, openai_wire
from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.config import Config, GrpcBackendTable, ModelTable, OpenAIBackendTable, catalog_of
from metergate.core.catalog import Catalog
from metergate.core.errors import CertificateInvalid, MetergateError, TokenizerInvalid
from metergate.core.parameters import Parameter
from metergate.edges.tls import read_authorities
from metergate.metering.offering import Offering
from metergate.ports import Backend, Tokenizer
from metergate.tokenizers.open import TokenizerSpec, open_tokenizer

BackendOptions = OpenAIBackendOptions | GrpcBackendOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An offering that nothing is wrong with, before its backends are opened."""

    catalog: Catalog
    tokenizers: Mapping[str, Tokenizer]  # by model id
    backends: Mapping[str, BackendOptions]  # by backend id

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read all that it needs, in seconds; TokenizerInvalid or CertificateInvalid if that cannot be used."""
        return cls(
            catalog=_catalog(config),
            tokenizers=_open_tokenizers(config),
            backends={backend_id: _backend_options(config, backend_id) for backend_id in config.backends},
        )


class Offerings:
    """The offering of now, and those that requests still run under."""

    def __init__(self, parts: Parts) -> None:
        """Open the backends; to be closed."""
        self._parts = parts
        self._leaving: dict[asyncio.Task[None], Offering] = {}
        backends = {backend_id: _open_backend(options) for backend_id, options in parts.backends.items()}
        self.current = _offering(parts, backends)

    def replace(self, parts: Parts) -> Offering:
        """Make another offering the one of now, and let the old one go when its last request is settled."""
        before = self.current
        backends = {
            backend_id: before.backends[backend_id]
            if options == self._parts.backends.get(backend_id)
            else _open_backend(options)
            for backend_id, options in parts.backends.items()
        }
        self._parts, self.current = parts, _offering(parts, backends)
        leaving = asyncio.create_task(self._let_go(before))
        self._leaving[leaving] = before
        leaving.add_done_callback(self._leaving.pop)
        return self.current

    async def close(self) -> None:
        """Close every backend, those of running requests included."""
        offerings = [self.current, *self._leaving.values()]
        for leaving in self._leaving:
            leaving.cancel()
        for backend in {backend for offering in offerings for backend in offering.backends.values()}:
            await backend.close()

    async def _let_go(self, offering: Offering) -> None:
        await offering.idle()
        others = [self.current, *(other for other in self._leaving.values() if other is not offering)]
        in_use = {backend for other in others for backend in other.backends.values()}
        for backend in offering.backends.values():
            if backend not in in_use:
                await backend.close()


def _offering(parts: Parts, backends: Mapping[str, Backend]) -> Offering:
    return Offering(catalog=parts.catalog, tokenizers=parts.tokenizers, backends=backends)


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


def _parameters(table: OpenAIBackendTable | GrpcBackendTable) -> frozenset[Parameter]:
    """What a backend takes: never what its protocol cannot say."""
    is_grpc = isinstance(table, GrpcBackendTable)
    if table.parameters is None:
        return grpc.PARAMETERS if is_grpc else openai_wire.DOCUMENTED_PARAMETERS
    return frozenset(table.parameters) & (grpc.PARAMETERS if is_grpc else openai_wire.PARAMETERS)


def _open_tokenizers(config: Config) -> Mapping[str, Tokenizer]:
    """Every model's tokenizer, by model id; models that count alike share one. TokenizerInvalid if one is unusable."""
    opened: dict[TokenizerSpec, Tokenizer] = {}
    tokenizers: dict[str, Tokenizer] = {}
    for model_id, model in config.models.items():
        spec = _tokenizer_spec(config, model)
        if spec not in opened:
            opened[spec] = open_tokenizer(spec)
        tokenizers[model_id] = opened[spec]
    return tokenizers


def parts_problems(config: Config) -> Iterator[MetergateError]:
    """Everything that ``Parts.of`` would refuse."""
    for spec in {_tokenizer_spec(config, model): None for model in config.models.values()}:
        try:
            open_tokenizer(spec)
        except TokenizerInvalid as exc:
            yield exc
    for backend_id in config.backends:
        try:
            _backend_options(config, backend_id)
        except CertificateInvalid as exc:
            yield exc


def _tokenizer_spec(config: Config, model: ModelTable) -> TokenizerSpec:
    file = model.tokenizer
    return TokenizerSpec(
        kind=file.kind,
        path=config.resolve(file.path),
        pattern=file.pattern,
        prompt_rule="none" if model.task == "embedding" else file.prompt_rule,
        chat_template_path=None if file.chat_template_path is None else config.resolve(file.chat_template_path),
    )


def _open_backend(options: BackendOptions) -> Backend:
    return GrpcBackend(options) if isinstance(options, GrpcBackendOptions) else OpenAIBackend(options)


def _backend_options(config: Config, backend_id: str) -> BackendOptions:
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
        )
    return _openai_options(backend_id, table, model_names, api_key)


def _ca_pem(config: Config, backend_id: str, table: GrpcBackendTable) -> bytes | None:
    """CertificateInvalid if the file of its authorities cannot be used; None: it proves itself to the public ones."""
    if table.ca_path is None:
        return None
    return read_authorities(f"backends.{backend_id}.ca_path", config.resolve(table.ca_path), datetime.now(UTC))


def _openai_options(
    backend_id: str, table: OpenAIBackendTable, model_names: Mapping[str, str], api_key: str | None
) -> OpenAIBackendOptions:
    return OpenAIBackendOptions(
        backend_id=backend_id,
        url=table.url,
        model_names=model_names,
        api_key=api_key,
        connect_timeout_seconds=table.connect_timeout_seconds,
        stream=table.stream,
        include_usage=table.include_usage,
        max_tokens_field=table.max_tokens_field,
        vector_encoding=table.vector_encoding,
        connections_max=table.connections_max,
    )

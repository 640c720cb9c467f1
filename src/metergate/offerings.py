"""Opens what the configuration puts on sale, and replaces it while requests run.

Whatever is used again is kept: a backend that did not change keeps its connections. What is not, is closed when the
last request that came in under it is settled.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self, TypeVar

from metergate.backends.engine import EngineBackend, EngineBackendOptions, EngineModel
from metergate.backends.grpc import GrpcBackend, GrpcBackendOptions
from metergate.backends.openai import OpenAIBackend, OpenAIBackendOptions
from metergate.config import Config, EngineBackendTable, GrpcBackendTable, ModelTable, OpenAIBackendTable, catalog_of
from metergate.core.catalog import Catalog
from metergate.core.errors import CertificateInvalid, MetergateError, TokenizerInvalid
from metergate.core.usage import CountingSource
from metergate.edges.tls import read_authorities
from metergate.metering.offering import Offering
from metergate.ports import Backend, TokenCodec, Tokenizer
from metergate.tokenizers.open import TokenizerSpec, open_codec, open_tokenizer

BackendOptions = OpenAIBackendOptions | GrpcBackendOptions | EngineBackendOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An offering that nothing is wrong with, before its backends are opened."""

    catalog: Catalog
    tokenizers: Mapping[str, Tokenizer]  # by model id
    backends: Mapping[str, BackendOptions]  # by backend id
    # By model id: of all that are counted by their token ids.
    codecs: Mapping[str, TokenCodec] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read all that it needs, in seconds; TokenizerInvalid or CertificateInvalid if that cannot be used."""
        codecs = _open_codecs(config)
        return cls(
            catalog=catalog_of(config),
            tokenizers={**_open_tokenizers(config), **codecs},
            codecs=codecs,
            backends={backend_id: _backend_options(config, backend_id, codecs) for backend_id in config.backends},
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
    return Offering(catalog=parts.catalog, tokenizers=parts.tokenizers, codecs=parts.codecs, backends=backends)


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
        if _counts_token_ids(model) is counts_token_ids:
            spec = _tokenizer_spec(config, model)
            if spec not in opened:
                opened[spec] = open_one(spec)
            by_model[model_id] = opened[spec]
    return by_model


def _counts_token_ids(model: ModelTable) -> bool:
    return CountingSource(model.counting) is CountingSource.TOKEN_IDS


def parts_problems(config: Config) -> Iterator[MetergateError]:
    """Everything that ``Parts.of`` would refuse."""
    wanted = {(_tokenizer_spec(config, model), _counts_token_ids(model)): None for model in config.models.values()}
    for spec, counts_token_ids in wanted:
        try:
            (open_codec if counts_token_ids else open_tokenizer)(spec)
        except TokenizerInvalid as exc:
            yield exc
    for backend_id, table in config.backends.items():
        try:
            _ca_pem(config, backend_id, table)
        except CertificateInvalid as exc:
            yield exc


def _tokenizer_spec(config: Config, model: ModelTable) -> TokenizerSpec:
    file = model.tokenizer
    return TokenizerSpec(
        kind=file.kind,
        path=config.resolve(file.path),
        pattern=file.pattern,
        prompt_rule=file.prompt_rule,
        chat_template_path=None if file.chat_template_path is None else config.resolve(file.chat_template_path),
    )


def _open_backend(options: BackendOptions) -> Backend:
    if isinstance(options, EngineBackendOptions):
        return EngineBackend(options)
    return GrpcBackend(options) if isinstance(options, GrpcBackendOptions) else OpenAIBackend(options)


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
            tls=table.tls,
            ca_pem=_ca_pem(config, backend_id, table),
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
        )
    return _openai_options(backend_id, table, model_names, api_key)


def _ca_pem(
    config: Config, backend_id: str, table: OpenAIBackendTable | GrpcBackendTable | EngineBackendTable
) -> bytes | None:
    """CertificateInvalid if the file of its authorities cannot be used; None: it proves itself to the public ones."""
    if isinstance(table, OpenAIBackendTable) or table.ca_path is None:
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
        connections_max=table.connections_max,
    )

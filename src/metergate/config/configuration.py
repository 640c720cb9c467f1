"""A configuration that was found right, and what it says in the domain's words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic import BaseModel

from metergate.config.schema import (
    Audit,
    BackendTable,
    ContentPolicy,
    Limits,
    Listener,
    Logs,
    Metrics,
    ModelTable,
    PromptBoundTable,
    Retention,
    Traces,
)
from metergate.core.catalog import Catalog, Model, ModelTask, ReasoningForm
from metergate.core.errors import ConfigProblem
from metergate.core.rating import RateCard, check_schedule
from metergate.core.text_bounds import PromptBound
from metergate.core.usage import CountingSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration that was found right, with its paths resolved and its secrets read."""

    file: Path
    listener: Listener
    store_path: Path
    store_cache_mebibytes: int
    store_request_filter_mebibytes: int
    limits: Limits
    retention: Retention
    audit: Audit
    metrics: Metrics
    logs: Logs
    traces: Traces
    content_policy: ContentPolicy
    backends: Mapping[str, BackendTable]
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
                prompt_bound=_prompt_bound(table),
                reasoning=ReasoningForm.NONE if table.reasoning is None else ReasoningForm(table.reasoning.upper()),
                task=ModelTask(table.task.upper()),
                dimensions=table.dimensions,
                dimensions_selectable=table.dimensions_selectable,
                backend_weights=table.backend_weights,
            )
            for model_id, table in config.models.items()
        }
    )


def _prompt_bound(table: ModelTable) -> PromptBound | None:
    if table.counting != "BACKEND":
        return None
    bound = table.prompt_bound or PromptBoundTable()
    return PromptBound(request_tokens_max=bound.request_tokens_max, message_tokens_max=bound.message_tokens_max)


# The keys of fields that are not called as a section of the file is.
_SECTIONS = {
    "store_path": ("store", "path"),
    "store_cache_mebibytes": ("store", "cache_mebibytes"),
    "store_request_filter_mebibytes": ("store", "request_filter_mebibytes"),
}


def needing_restart(old: Config, new: Config) -> list[ConfigProblem]:
    """The keys that differ and are only read at start."""
    problem = "is only read at start: restart the gateway, or change it back"
    reloaded = {"file", "backends", "models", "rate_cards", "api_keys"}
    return [
        ConfigProblem(".".join(map(str, (*section, *key))), problem)
        for section, before, after in (
            (_SECTIONS.get(name, (name,)), getattr(old, name), getattr(new, name))
            for name in (field.name for field in fields(Config))
            if name not in reloaded
        )
        for key in _differences(before, after)
    ]


def _differences(before: object, after: object) -> list[tuple[str | int, ...]]:
    old, new = dict(leaves((), before)), dict(leaves((), after))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def leaves(key: tuple[str | int, ...], value: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Every key below a value, with what it is set to, in the order of the schema."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from leaves((*key, name), getattr(value, name))
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from leaves((*key, name), child)
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        for index, child in enumerate(value):
            yield from leaves((*key, index), child)
    else:
        yield key, value

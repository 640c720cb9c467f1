"""The canonical form of a request: its hash, kept with the charge for ever, tells a repeated request from another (L4).

So the form of a request never changes, whatever later versions add. The rule: a field that has its default is not in
the form. Then a new field, whose default means what requests without it meant before, changes no hash but of requests
that use it. Nothing else may change: no field's name, default or type, and none is added without a default. How classes
order their fields does not matter.
"""

import hashlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec

from metergate.core.embedding import EmbeddingRequest
from metergate.core.inference import InferenceRequest


def content_hash(key: bytes, request: InferenceRequest | EmbeddingRequest) -> bytes:
    """Hash what was asked, keyed: the same request has the same hash, and none can be guessed from it (L11)."""
    return hashlib.blake2b(canonical_form(request), key=key, digest_size=32).digest()


def canonical_form(request: InferenceRequest | EmbeddingRequest) -> bytes:
    """JSON with sorted names and without spaces. No two requests share one: what is left out is known by its name."""
    return msgspec.json.encode(_form(request), order="deterministic")


def _form(value: Any) -> Any:  # noqa: ANN401 - any field's value, and what JSON has for it
    if isinstance(value, tuple):
        return [item if type(item) is str else _form(item) for item in value]
    shape = _shape(value.__class__)
    if shape is None:
        return value
    form = {}
    for name, default, item in zip(shape.names, shape.defaults, shape.values(value), strict=True):
        if item is not default and item != default:
            form[name] = item if type(item) is str else _form(item)
    return form


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields of a class. It is taken of every message of every request: so it is looked up once."""

    names: tuple[str, ...]
    defaults: tuple[object, ...]  # MISSING, which no value equals, of a field without one
    values: Callable[[object], tuple[object, ...]]


@cache
def _shape(kind: type) -> _Shape | None:
    """None: its values are no classes of ours, and are as they are."""
    if not is_dataclass(kind):
        return None
    names = tuple(field.name for field in fields(kind))
    assert len(names) > 1, "attrgetter returns no tuple of one"
    assert all(field.default_factory is MISSING for field in fields(kind)), kind
    return _Shape(names, tuple(field.default for field in fields(kind)), attrgetter(*names))

"""The models that a backend is set up to run."""

from collections.abc import Mapping
from typing import TypeVar

from metergate.core.errors import BackendUnavailable

Model = TypeVar("Model")


def known(models: Mapping[str, Model], model_id: str) -> Model:
    """What a backend knows a model by; BackendUnavailable for one that it does not know."""
    model = models.get(model_id)
    if model is None:
        raise BackendUnavailable(model_id=model_id, problem="it is not set up to run this model")
    return model

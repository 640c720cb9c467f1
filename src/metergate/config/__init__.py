"""The one configuration file: its shape, its defaults and what makes it wrong. The only reader of the environment.

Every problem of a file is found before anything starts, and every one names its key. Nothing is guessed: an unknown key
is a problem, because a mistyped limit or price that is silently ignored costs somebody money.
"""

from metergate.config.configuration import Config, catalog_of, needing_restart
from metergate.config.reading import Setting, load_config, settings_in_effect
from metergate.config.schema import (
    ID_PATTERN,
    BackendTable,
    EngineBackendTable,
    GrpcBackendTable,
    Limits,
    Logs,
    ModelTable,
    OpenAIBackendTable,
    TokenizerFile,
    Traces,
)

__all__ = [
    "ID_PATTERN",
    "BackendTable",
    "Config",
    "EngineBackendTable",
    "GrpcBackendTable",
    "Limits",
    "Logs",
    "ModelTable",
    "OpenAIBackendTable",
    "Setting",
    "TokenizerFile",
    "Traces",
    "catalog_of",
    "load_config",
    "needing_restart",
    "settings_in_effect",
]

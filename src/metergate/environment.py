"""Environment variables that stand for keys of the configuration: METERGATE_LIMITS__SLICE_TOKENS.

A text is written as it is, everything else as in the file. The ids of backends and models stand in capitals, with ``_``
for what a shell's variable cannot have: models.smollm2-135m is MODELS__SMOLLM2_135M.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

PREFIX = "METERGATE_"
DELIMITER = "__"

Key = tuple[str, ...]  # ("limits", "slice_tokens")


class EnvironmentSource(EnvSettingsSource):
    """The values that the environment has for a file's keys."""

    def __init__(self, schema: type[BaseModel], document: Mapping[str, Any]) -> None:
        """``document``: the file, whose ids are those that variables may name."""
        super().__init__(
            # What it needs of its class is fields and a configuration, which every schema has; settings that read more
            # sources than these by themselves are not wanted.
            cast("type[BaseSettings]", schema),
            case_sensitive=True,
            env_prefix=PREFIX,
            env_nested_delimiter=DELIMITER,
        )
        self.variables: dict[Key, str] = {}  # the name of each variable, by what it stands for
        values: dict[str, str | None] = {}
        for name, value in self.env_vars.items():
            if name.startswith(PREFIX):
                key = _key_of(name, document)
                self.variables[key] = name
                values[PREFIX + DELIMITER.join(key)] = value
        self.env_vars = values

    def unknown(self) -> Iterator[str]:
        """Names of variables that stand for no key."""
        for key, name in self.variables.items():
            if not self._is_known(key):
                yield name

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401 - as its base
        """Read a list or a table as the file would; a text that is none is left for the schema to refuse."""
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            return value

    def _is_known(self, key: Key) -> bool:
        field: FieldInfo | None = self.settings_cls.model_fields.get(key[0])
        for part in key[1:]:
            field = self.next_field(field, part, self.case_sensitive)
        return field is not None


def _key_of(name: str, document: Mapping[str, Any]) -> Key:
    """The key with the file's own spelling of it, where the file has it."""
    here: Any = document
    key: list[str] = []
    for part in name.removeprefix(PREFIX).split(DELIMITER):
        spellings = here if isinstance(here, Mapping) else {}
        spelt = next((known for known in spellings if _plain(known) == _plain(part)), part.lower())
        key.append(spelt)
        here = spellings.get(spelt)
    return tuple(key)


def _plain(part: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", part.lower())


def secret(variable: str | None) -> str:
    """What an environment variable holds; "" if none is named or it holds nothing."""
    return os.environ.get(variable, "") if variable else ""

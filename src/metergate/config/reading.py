"""Reads the file and the environment, and tells where every value came from."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from metergate.config.configuration import Config, leaves
from metergate.config.problems import (
    environment_problems,
    installation_problems,
    limit_problems,
    semantic_problems,
)
from metergate.config.schema import ConfigFile
from metergate.config.shape_problems import problem_of
from metergate.core.errors import ConfigInvalid, ConfigProblem
from metergate.environment import EnvironmentSource, Key, secret

# A configuration is read by people; a file beyond this is the wrong file.
FILE_BYTES_MAX = 1024 * 1024


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
    return [Setting(key=key, value=value, source=_source_of(key, loaded)) for key, value in leaves((), loaded.file)]


def _config_of(path: Path, file: ConfigFile) -> Config:
    return Config(
        file=path,
        listener=file.listener,
        store_path=path.parent / file.store.path,
        store_cache_mebibytes=file.store.cache_mebibytes,
        store_request_filter_mebibytes=file.store.request_filter_mebibytes,
        limits=file.limits,
        retention=file.retention,
        audit=file.audit,
        metrics=file.metrics,
        logs=file.logs,
        traces=file.traces,
        content_policy=file.content_policy,
        backends=file.backends,
        models=file.models,
        rate_cards=tuple(table.card() for table in file.rate_cards),
        api_keys={
            backend_id: key for backend_id, backend in file.backends.items() if (key := secret(backend.api_key_env))
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """What was read, and found right."""

    file: ConfigFile
    written: Mapping[str, Any]  # in the file
    overrides: Mapping[str, Any]  # in the environment, in the same shape
    variables: Mapping[Key, str]  # names, by what they stand for


def _load(path: Path) -> _Loaded:
    written = _read(path)
    source = EnvironmentSource(ConfigFile, written)
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
        file = ConfigFile.model_validate(document)
    except ValidationError as exc:
        problems += [problem_of(error, document) for error in exc.errors()]
        raise ConfigInvalid(path, *_with_variables(problems, source.variables)) from None
    problems += [
        *semantic_problems(file, path.parent),
        *limit_problems(file.limits, file.models),
        *environment_problems(file.backends),
        *installation_problems(file),
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
    except FileNotFoundError as exc:
        problem = "it cannot be read: there is no such file: go where it is, or name it with --config"
        raise ConfigInvalid(path, ConfigProblem("", problem)) from exc
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

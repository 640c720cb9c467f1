"""What has the wrong shape in a configuration, in the file's words: every problem names its key, and what cures it."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from metergate.config import schema
from metergate.core.errors import ConfigProblem

_SHAPE_PROBLEMS = {
    "missing": "is missing",
    "union_tag_not_found": "needs a kind: {expected_kinds}",
    "union_tag_invalid": "has an unknown kind {tag!r}: it must be {expected_tags}",
    "timezone_aware": "needs a time zone, such as 2026-01-01T00:00:00+08:00",
    "too_short": "needs at least {min_length}",
    "too_long": "has {actual_length}, and may have at most {max_length}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}

_TYPE_PROBLEMS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": 'a text, such as "llama"',
    "list_type": 'a list, such as ["llama"]',
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "datetime_type": "a time, without quotes, such as 2026-01-01T00:00:00+08:00",
}

# By what TOML makes of them; bool before int, which it is too. What else there is are dates and times.
_KINDS = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number with a point"),
    (str, "a text"),
    (list, "a list"),
    (dict, "a table"),
)

# Keys of every table: whoever mistypes one is told which it may have been.
_KNOWN_KEYS = sorted(
    {
        name
        for table in vars(schema).values()
        if isinstance(table, type) and issubclass(table, schema.Table)
        for name in table.model_fields
    }
)


def problem_of(error: ErrorDetails, document: Mapping[str, Any]) -> ConfigProblem:
    """What pydantic found, in the words of the file."""
    key = _key_of(error["loc"], document)
    context = {"expected_kinds": "'openai', 'grpc', 'vllm' or 'sglang'", **error.get("ctx", {})}
    if error["type"] == "literal_error" and key.endswith(".counting"):
        return ConfigProblem(key, "must be 'TOKENIZER', 'TOKEN_IDS' or 'BACKEND'")
    if error["type"] == "extra_forbidden":
        return ConfigProblem(key, f"is not a known key{_hint(str(error['loc'][-1]))}")
    if error["type"] in _TYPE_PROBLEMS:
        # Its kind, not itself: a secret may have been typed into the wrong place.
        kind = next((kind for type_, kind in _KINDS if isinstance(error["input"], type_)), "a date or a time")
        return ConfigProblem(key, f"must be {_TYPE_PROBLEMS[error['type']]}; it is {kind}")
    template = _SHAPE_PROBLEMS.get(error["type"])
    if template is not None:
        return ConfigProblem(key, template.format_map(context))
    if error["type"] == "string_pattern_mismatch":
        return ConfigProblem(key, "must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ConfigProblem(key, f"{message[:1].lower()}{message[1:]}")


def _hint(name: str) -> str:
    close = get_close_matches(name, _KNOWN_KEYS, n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close and close[0] != name else ""


def _key_of(location: Sequence[int | str], document: Mapping[str, Any]) -> str:
    """The key as the file has it; the name of a union's chosen branch, which pydantic inserts, is left out."""
    key = ""
    here: Any = document
    for index, part in enumerate(location):
        if isinstance(part, int):
            key, here = f"{key}[{part}]", here[part]
        elif isinstance(here, Mapping) and part in here:
            key, here = f"{key}.{part}".lstrip("."), here[part]
        elif index == len(location) - 1 and part != "[key]":
            key = f"{key}.{part}".lstrip(".")
    return key

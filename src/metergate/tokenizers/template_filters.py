"""The filters, tests and functions that chat templates use, each charged for what it goes through and makes.

Nothing else is there. A filter of Jinja's whose work grows with its input is charged for it first (``_on_elements``,
``_on_all``); one that could make more than its input is written here.
"""

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, NoReturn

import jinja2
import jinja2.filters
import jinja2.sandbox
import jinja2.tests
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace
from markupsafe import Markup

from metergate.tokenizers.template_budget import used
from metergate.tokenizers.template_texts import (
    charge_case,
    charge_formatting,
    charge_replacing,
    charge_stripping,
    lines_of,
)
from metergate.tokenizers.template_values import (
    ENTRY_BYTES,
    VALUE_BYTES,
    Containers,
    elements,
    joined,
    key,
    look,
    text_bytes,
    text_of,
    written_bytes,
)

# Names of attributes, of filters, and values to compare with.
_ARGUMENT_CHARACTERS_MAX = 1_024
# A level of JSON is indented by two or four.
_INDENT_MAX = 16
# ", " and ": ".
_SEPARATOR_CHARACTERS_MAX = 4
# No number that a template reads is longer.
_NUMBER_CHARACTERS_MAX = 64
# A date and a time, with words.
_TIME_FORM_CHARACTERS_MAX = 256

Function = Callable[..., Any]


# --- Jinja's own filters ----------------------------------------------------------------------------------------------


def _charged(charge: Callable[[Any], Any], name: str) -> Function:
    """Jinja's filter, given what ``charge`` makes of its value; what it makes lazily is made at once."""
    original: Function = jinja2.filters.FILTERS[name]
    # Such a filter is given Jinja's context before the value.
    place = 1 if hasattr(original, "jinja_pass_arg") else 0

    @wraps(original)
    def charged(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any values of a template
        for argument in (*arguments[place + 1 :], *named.values()):
            if isinstance(argument, str) and len(argument) > _ARGUMENT_CHARACTERS_MAX:
                raise SecurityError("a template may not give a filter so long an argument")
        value = charge(arguments[place])
        made = original(*arguments[:place], value, *arguments[place + 1 :], **named)
        # It stays without a length, and true when it is empty.
        return iter(list(made)) if isinstance(made, Iterator) else made

    return charged


def _all_of(values: Any) -> Any:  # noqa: ANN401
    """The values to be compared or hashed many times, charged."""
    values = elements(values)
    # Texts are compared in lower case: each has a copy, and another while it is made.
    used().make(4 * look(values))
    used().step(len(values) * len(values).bit_length())
    return values


_on_elements = partial(_charged, elements)
_on_all = partial(_charged, _all_of)


# --- filters of our own -----------------------------------------------------------------------------------------------


def _lower(value: Any) -> str:  # noqa: ANN401
    text = text_of(value)
    charge_case(text)
    return text.lower()


def _upper(value: Any) -> str:  # noqa: ANN401
    text = text_of(value)
    charge_case(text)
    return text.upper()


def _capitalized(value: Any) -> str:  # noqa: ANN401
    text = text_of(value)
    charge_case(text)
    return text.capitalize()


def _title(value: Any) -> str:  # noqa: ANN401
    text = text_of(value)
    charge_case(text)
    used().make(len(text) * VALUE_BYTES)  # it is split into words
    return jinja2.filters.do_title(text)


def _trimmed(value: Any, chars: str | None = None) -> str:  # noqa: ANN401
    text = text_of(value)
    charge_stripping(text, chars)
    return text.strip(chars)


def _safe(value: Any) -> Markup:  # noqa: ANN401
    text = text_of(value)
    used().make(text_bytes(text))
    return Markup(text)  # noqa: S704 - prompts are no HTML


def _formatted(value: Any, *values: Any, **named: Any) -> str:  # noqa: ANN401
    form = text_of(value)
    charge_formatting(form, "%", (values, named))
    return jinja2.filters.do_format(form, *values, **named)


def _indented(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:  # noqa: ANN401
    text = text_of(value)
    size = len(width) if isinstance(width, str) else max(0, width)
    lines = lines_of(text)
    used().make(text_bytes(text) * 2 + lines * (VALUE_BYTES + size * 4))
    return jinja2.filters.do_indent(text, width, first, blank)


@jinja2.pass_environment
def _joined(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    values = elements(value)
    if attribute is not None:
        values = map(jinja2.filters.make_attrgetter(environment, key(attribute)), values)
    return joined([text_of(value) for value in values], text_of(d))


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> str:  # noqa: ANN401
    text, old, new = text_of(value), text_of(old), text_of(new)
    charge_replacing(text, old, new)
    return str(text).replace(old, new, -1 if count is None else count)


def _integer(value: Any, default: int = 0, base: int = 10) -> int:  # noqa: ANN401
    return jinja2.filters.do_int(_number(value), default, base)


def _float(value: Any, default: float = 0.0) -> float:  # noqa: ANN401
    return jinja2.filters.do_float(_number(value), default)


def _number(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str) and len(value) > _NUMBER_CHARACTERS_MAX:
        raise SecurityError("a template may not read so long a number")
    return value


def _to_json(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; Jinja's own filter escapes HTML, which no model was trained on."""
    if indent is not None and not 0 <= indent <= _INDENT_MAX:
        raise SecurityError("a template may not indent so far")
    if separators is not None and any(len(separator) > _SEPARATOR_CHARACTERS_MAX for separator in separators):
        raise SecurityError("a template may not separate so far")
    write = json.encoder.encode_basestring_ascii if ensure_ascii else json.encoder.encode_basestring
    size_bytes = written_bytes(value, write, indent=indent or 0)
    used().fits(2 * size_bytes)  # in pieces, and as a whole
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    used().make(text_bytes(text))
    return text


FILTERS: Mapping[str, Function] = (
    {name: jinja2.filters.FILTERS[name] for name in ("abs", "count", "d", "default", "first", "last", "length")}
    | {name: _on_elements(name) for name in ("items", "list", "map", "reverse")}
    | {name: _on_elements(name) for name in ("reject", "rejectattr", "select", "selectattr")}
    | {name: _on_all(name) for name in ("dictsort", "max", "min", "sort", "unique")}
    | {"capitalize": _capitalized, "lower": _lower, "title": _title, "trim": _trimmed, "upper": _upper}
    | {"format": _formatted, "indent": _indented, "join": _joined, "replace": _replaced}
    | {"float": _float, "int": _integer, "safe": _safe, "string": text_of, "tojson": _to_json}
)


# --- comparisons and tests --------------------------------------------------------------------------------------------

_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


def compared(left: Any, name: str, right: Any) -> Any:  # noqa: ANN401
    """The comparison of that name (Jinja's of operators), charged."""
    if name in {"in", "notin"}:
        right = _searched(left, right)
    elif isinstance(left, Containers) and isinstance(right, Containers):
        look(min(left, right, key=len))
    elif isinstance(left, str) and isinstance(right, str):
        used().go_through(min(len(left), len(right)))
    return _COMPARISONS[name](left, right)


def _searched(left: Any, right: Any) -> Any:  # noqa: ANN401
    if isinstance(right, dict):
        key(left)
    elif isinstance(right, str):
        used().go_through(len(right))
    elif isinstance(left, str):
        right = elements(right)
        used().go_through(len(right) * len(left))
    else:
        right = elements(right)
        look(right)
    return right


def _comparing(name: str) -> Function:
    return lambda value, other: compared(value, name, other)


def _is_odd(value: float) -> bool:
    return bool(_operand(value) % 2 == 1)


def _is_even(value: float) -> bool:
    return bool(_operand(value) % 2 == 0)


def _is_divisible_by(value: float, number: float) -> bool:
    return bool(_operand(value) % _operand(number) == 0)


def _operand(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, (int, float)):
        raise SecurityError("a template may not divide what is no number")
    return value


_JINJA_TESTS: Mapping[str, Any] = jinja2.tests.TESTS

TESTS: Mapping[str, Function] = {
    **{name: _JINJA_TESTS[name] for name in ("boolean", "defined", "false", "float", "integer", "iterable")},
    **{name: _JINJA_TESTS[name] for name in ("mapping", "none", "number", "sequence", "string", "true")},
    **{name: _JINJA_TESTS[name] for name in ("callable", "sameas", "undefined")},
    **{name: _comparing("eq") for name in ("eq", "==", "equalto")},
    **{name: _comparing("ne") for name in ("ne", "!=")},
    **{name: _comparing("gt") for name in ("gt", ">", "greaterthan")},
    **{name: _comparing("lt") for name in ("lt", "<", "lessthan")},
    "ge": _comparing("gteq"),
    ">=": _comparing("gteq"),
    "le": _comparing("lteq"),
    "<=": _comparing("lteq"),
    "in": _comparing("in"),
    "divisibleby": _is_divisible_by,
    "even": _is_even,
    "odd": _is_odd,
}


# --- functions --------------------------------------------------------------------------------------------------------


def _mapping(*mappings: Any, **values: Any) -> dict[str, Any]:  # noqa: ANN401
    for mapping in mappings:
        look(mapping)
        used().make(len(mapping) * ENTRY_BYTES)
    return dict(*mappings, **values)


def _namespace(*mappings: Any, **values: Any) -> Namespace:  # noqa: ANN401
    used().make(ENTRY_BYTES)
    return Namespace(_mapping(*mappings, **values))


def _raise_exception(message: Any) -> NoReturn:  # noqa: ANN401
    raise jinja2.TemplateError(text_of(message))


def _strftime_now(form: str) -> str:
    if len(form) > _TIME_FORM_CHARACTERS_MAX:
        raise SecurityError("a template may not write the time at such length")
    return datetime.now().astimezone().strftime(form)


FUNCTIONS: Mapping[str, Function] = {
    "dict": _mapping,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "range": jinja2.sandbox.safe_range,
    "strftime_now": _strftime_now,
}

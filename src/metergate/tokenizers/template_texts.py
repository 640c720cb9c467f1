"""The methods of texts that chat templates call, each charged for what it goes through and makes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from metergate.tokenizers.template_budget import used
from metergate.tokenizers.template_values import (
    VALUE_BYTES,
    character_bytes,
    elements,
    joined,
    look,
    represented,
    text_bytes,
    written_bytes,
)

# Every character at an end is looked for among these: longer ones take their product.
_STRIPPED_CHARACTERS_MAX = 64
# Searching from the end takes the product of both.
_SOUGHT_BACKWARDS_CHARACTERS_MAX = 64
# Characters that one can become, and the four bytes of each in between.
_CASE_BYTES = 3 * 4 + 4
# A width, or a place for one: with more than three digits it is no column of a text.
_WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*")
# What a width and a precision of three digits can add to a number.
_WIDTH_MAX = 2_000
_LINE_ENDS = ("\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
_REFUSED = "a template may not use {} so"


def lines_of(text: str) -> int:
    """How many lines it has, for whatever splits them."""
    return 1 + sum(map(text.count, _LINE_ENDS))


def charge_case(text: str) -> None:
    """Charge for the text in other letters."""
    used().make(len(text) * (1 if text.isascii() else _CASE_BYTES))


def charge_stripping(text: str, characters: str | None) -> None:
    """Charge for a text without these characters at its ends; SecurityError if they are too many."""
    if characters is not None and len(characters) > _STRIPPED_CHARACTERS_MAX:
        raise SecurityError(_REFUSED.format("strip"))
    used().make(text_bytes(text))


def charge_replacing(text: str, old: str, new: str) -> None:
    """Charge for the text with ``old`` replaced."""
    used().go_through(len(text))
    made = len(text) + text.count(old) * len(new)
    used().make(made * max(character_bytes(text), character_bytes(new)))


def charge_formatting(form: str, mark: str, values: Any) -> None:  # noqa: ANN401 - any values of a template
    """Charge for a form whose fields begin with ``mark``: each could be all of the values, at its widest."""
    if _WIDE.search(form):
        raise SecurityError("a template may not pad so far")
    fields = form.count(mark)
    size_bytes = written_bytes(values, represented) + character_bytes(form) * _WIDTH_MAX * (mark == "%")
    used().make(text_bytes(form) * 4 + fields * size_bytes)


def _charge_splitting(text: str, pieces: int) -> None:
    used().go_through(len(text))
    used().make(text_bytes(text) + pieces * VALUE_BYTES)


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    pieces = (len(text) + 1) // 2 if sep is None else text.count(sep)
    _charge_splitting(text, 1 + (pieces if maxsplit < 0 else min(pieces, maxsplit)))
    return text.split(sep, maxsplit)


def _rsplit(text: str, sep: str, maxsplit: int = -1) -> list[str]:
    if len(sep) > _SOUGHT_BACKWARDS_CHARACTERS_MAX:
        raise SecurityError(_REFUSED.format("rsplit"))
    used().go_through(len(text) * len(sep))
    _charge_splitting(text, 1 + text.count(sep))
    return text.rsplit(sep, maxsplit)


def _splitlines(text: str, keepends: bool = False) -> list[str]:
    _charge_splitting(text, lines_of(text))
    return text.splitlines(keepends)


def _partition(text: str, sep: str) -> tuple[str, str, str]:
    _charge_splitting(text, 3)
    return text.partition(sep)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    charge_replacing(text, old, new)
    return text.replace(old, new, count)


def _join(text: str, values: Any) -> str:  # noqa: ANN401 - any value of a template
    return joined(elements(values), text)


def _stripping(name: str) -> Callable[..., str]:
    method: Callable[..., str] = getattr(str, name)

    def stripped(text: str, characters: str | None = None) -> str:
        charge_stripping(text, characters)
        return method(text, characters)

    return stripped


def _removing(name: str) -> Callable[..., str]:
    method: Callable[..., str] = getattr(str, name)

    def removed(text: str, part: str) -> str:
        used().make(text_bytes(text))
        return method(text, part)

    return removed


def _casing(name: str) -> Callable[..., str]:
    method: Callable[..., str] = getattr(str, name)

    def cased(text: str) -> str:
        charge_case(text)
        return method(text)

    return cased


def _seeking(name: str) -> Callable[..., object]:
    method: Callable[..., object] = getattr(str, name)

    def sought(text: str, *arguments: Any) -> object:  # noqa: ANN401 - texts, places, a tuple of texts
        look(arguments)
        used().go_through(len(text))
        return method(text, *arguments)

    return sought


METHODS: Mapping[str, Callable[..., Any]] = {
    "join": _join,
    "partition": _partition,
    "replace": _replace,
    "rsplit": _rsplit,
    "split": _split,
    "splitlines": _splitlines,
    **{name: _stripping(name) for name in ("lstrip", "rstrip", "strip")},
    **{name: _removing(name) for name in ("removeprefix", "removesuffix")},
    **{name: _casing(name) for name in ("capitalize", "lower", "title", "upper")},
    **{name: _seeking(name) for name in ("count", "endswith", "find", "index", "startswith")},
    **{
        name: _seeking(name) for name in ("isalnum", "isalpha", "isdigit", "islower", "isnumeric", "isspace", "isupper")
    },
}

"""What going through a template's values, writing and copying them takes.

Values share their parts (``[a] * 1000`` holds one ``a``), but whatever writes, compares or sorts them meets each part
as often as it occurs. So before a value is gone through it is walked here, and every part is charged each time.
"""

import itertools
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError

from metergate.tokenizers.template_budget import used

# A list's reference to an element.
PLACE_BYTES = 8
# A small text or number, with its reference.
VALUE_BYTES = 80
# An entry of a dictionary, without its key and value.
ENTRY_BYTES = 104
# JSON schemas and arguments of tools nest to a fifth of it; Python's own recursion ends at ten times of it.
_DEPTH_MAX = 100
# Longer names of what is not there would be written, escaped, into messages of errors.
_KEY_CHARACTERS_MAX = 1_024
# A text is measured in pieces, so that measuring takes no memory.
_PIECE_CHARACTERS = 16_384
# Around an element or a key: ": " or ", ", brackets, and Markup's name.
_AROUND_CHARACTERS = len("Markup(), ") + len("{}")
# A float with its sign and exponent, None, False.
_NUMBER_CHARACTERS = 25
_BITS_PER_DIGIT = 3

Containers = (list, tuple, dict, KeysView, ValuesView, ItemsView)
_SCALARS = (str, int, float, bool, type(None), Undefined)
_END = object()


def text_bytes(*texts: str) -> int:
    """Bytes that a text made of these takes."""
    return sum(map(len, texts)) * max(map(character_bytes, texts), default=1)


def character_bytes(text: str) -> int:
    """Bytes that each character takes in this text."""
    return 1 if text.isascii() else min(4, sys.getsizeof(text) // len(text))


def is_scalar(value: object) -> bool:
    """Whether a value has no parts."""
    return isinstance(value, _SCALARS)


def key(value: Any) -> Any:  # noqa: ANN401 - any value of a template
    """The key of a dictionary, the index of a list; SecurityError for what would have to be hashed part by part."""
    if not is_scalar(value) or (isinstance(value, str) and len(value) > _KEY_CHARACTERS_MAX):
        raise SecurityError("a template may not use such a key")
    return value


def elements(values: Any) -> Any:  # noqa: ANN401 - any value of a template
    """The values to go through and to put in a new list, charged. What has no length becomes a list."""
    budget = used()
    if not isinstance(values, Sized):
        if not values:  # nothing, to Jinja's filters
            return values
        counted = []
        for value in values:
            budget.step()
            counted.append(value)
        values = counted
    else:
        budget.step(len(values))
    budget.make(len(values) * VALUE_BYTES)
    return values


def parts(value: Any) -> Iterator[tuple[Any, int]]:  # noqa: ANN401 - any value of a template
    """The value and all within it, each with its depth and as often as it occurs; each takes a step."""
    budget = used()
    levels = [iter((value,))]
    while levels:
        part = next(levels[-1], _END)
        if part is _END:
            levels.pop()
            continue
        budget.step()
        yield part, len(levels)
        if isinstance(part, Containers):
            if len(levels) > _DEPTH_MAX:
                raise SecurityError("a template may not nest so deep")
            within = itertools.chain.from_iterable(part.items()) if isinstance(part, dict) else iter(part)
            levels.append(within)


def look(value: Any) -> int:  # noqa: ANN401 - any value of a template
    """Charge for going through all of the value; bytes that copies of all its texts would take."""
    budget = used()
    size_bytes = 0
    for part, _ in parts(value):
        if isinstance(part, str):
            budget.go_through(len(part))
            size_bytes += text_bytes(part)
    return size_bytes


def written_bytes(value: Any, write: Callable[[str], str], *, indent: int = 0) -> int:  # noqa: ANN401
    """Bytes of a value written with ``write`` for its texts; SecurityError if it is no data, or too large."""
    budget = used()
    characters, widest_bytes = 0, 1
    for part, depth in parts(value):
        characters += _AROUND_CHARACTERS + 2 * indent * depth
        if isinstance(part, str):
            widest_bytes = max(widest_bytes, character_bytes(part))
            for start in range(0, len(part), _PIECE_CHARACTERS):
                characters += len(write(part[start : start + _PIECE_CHARACTERS]))
                budget.fits(characters * widest_bytes)
        elif isinstance(part, int):
            characters += _NUMBER_CHARACTERS + part.bit_length() // _BITS_PER_DIGIT
        elif is_scalar(part):
            characters += _NUMBER_CHARACTERS
        elif not isinstance(part, (list, tuple, dict)):
            raise SecurityError(f"a template may not write a {type(part).__name__}")
        budget.fits(characters * widest_bytes)
    return characters * widest_bytes


def text_of(value: Any) -> str:  # noqa: ANN401 - any value of a template
    """``str`` of a value, charged; a text is itself."""
    if isinstance(value, str):
        return value
    size_bytes = VALUE_BYTES if is_scalar(value) else written_bytes(value, represented)
    used().make(size_bytes)
    return str(value)


def represented(text: str) -> str:
    """``repr`` of a piece of a text, or more than it."""
    # Whole texts may be quoted otherwise than their pieces: then each ' is escaped.
    return repr(text) + "'" * text.count("'")


def joined(texts: Iterable[str], separator: str = "") -> str:
    """The texts in one, charged."""
    texts = list(texts)
    widest_bytes = max(map(character_bytes, (*texts, separator)))
    used().make((sum(map(len, texts)) + len(separator) * len(texts)) * widest_bytes)
    return str(separator).join(texts)  # a Markup would escape them

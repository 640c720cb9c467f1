"""Reads the tokenizer's part of a GGUF file's header, and nothing of the model's weights.

The ``gguf`` package needs 2.4 s for the header of a small vocabulary (it makes several arrays of every string); this
reads it in 0.1 s.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from metergate.core.errors import TokenizerInvalid

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Value type -> struct format of one little-endian number.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KEYS_MAX = 65_536  # real files have dozens; a corrupt count must not keep us reading
_ARRAY_DEPTH_MAX = 4  # arrays of arrays are legal; none is known to go deeper than two


class _Header:
    """A position in the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._offset = 0

    def number(self, form: str) -> Any:  # noqa: ANN401 - the file says what it is
        """The next number."""
        (value,) = struct.unpack_from(f"<{form}", self._data, self._offset)
        self._offset += struct.calcsize(f"<{form}")
        return value

    def raw(self, length: int) -> bytes:
        """The next bytes; ValueError if the file has fewer."""
        end = self._offset + length
        if end > len(self._data):
            raise ValueError("the file is cut off")
        value = self._data[self._offset : end]
        self._offset = end
        return value

    def string(self) -> str:
        """The next string."""
        return self.raw(self.number("Q")).decode()

    def value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401 - the file says what it is
        """The next value of a type."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        if depth == _ARRAY_DEPTH_MAX:
            raise ValueError("arrays are nested too deeply")
        item, count = self.number("I"), self.number("Q")
        if item in _NUMBERS:
            form = f"<{count}{_NUMBERS[item]}"
            return struct.unpack(form, self.raw(struct.calcsize(form)))
        if count > len(self._data):
            raise ValueError("an array is longer than the file")
        return tuple(self.value(item, depth + 1) for _ in range(count))


def read_tokenizer_metadata(path: Path) -> dict[str, Any]:
    """The header's values whose key starts with ``tokenizer.``; TokenizerInvalid if it is no readable GGUF file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Header(data))
    except OSError as error:
        raise TokenizerInvalid(path=str(path), problem=error.strerror or str(error)) from error
    except (ValueError, LookupError, struct.error, OverflowError, MemoryError) as error:
        raise TokenizerInvalid(path=str(path), problem=f"it is no valid GGUF file: {error}") from error


def _read(header: _Header) -> dict[str, Any]:
    if header.raw(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = header.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, known are {_VERSIONS}")
    header.number("Q")  # how many tensors
    count = header.number("Q")
    if count > _KEYS_MAX:
        raise ValueError(f"it has {count} keys, at most {_KEYS_MAX} are read")
    values = {}
    for _ in range(count):
        key = header.string()
        value = header.value(header.number("I"))
        if key.startswith("tokenizer."):
            values[key] = value
    return values

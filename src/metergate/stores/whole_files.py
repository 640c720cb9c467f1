"""Files that appear whole or not at all: written beside their place, made durable, then put there."""

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from metergate.core.errors import FileRefused

# What SQLite leaves beside a database that it was stopped in the middle of.
_SQLITE_SUFFIXES = ("", "-journal", "-wal", "-shm")


class WholeFile:
    """A file that is being made. FileRefused if its place is taken or cannot be written; unless it is kept, it goes."""

    def __init__(self, place: Path, *, may_replace: bool = False) -> None:
        self.place = place
        self._may_replace = may_replace
        self.partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")

    def __enter__(self) -> Self:
        if not self._may_replace and os.path.lexists(self.place):
            raise FileRefused(path=str(self.place), problem="it is there already")
        try:
            os.close(os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except (OSError, ValueError) as exc:
            raise FileRefused(path=str(self.place), problem=getattr(exc, "strerror", None) or str(exc)) from exc
        return self

    def keep(self) -> None:
        """Put it in its place, durably."""
        try:
            _make_durable(self.partial)
            if self._may_replace:
                os.replace(self.partial, self.place)
            else:
                os.link(self.partial, self.place)  # a rename would replace what somebody has put there meanwhile
                os.unlink(self.partial)
            _make_durable(self.place.parent)
        except OSError as exc:
            raise FileRefused(path=str(self.place), problem=exc.strerror or str(exc)) from exc

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for suffix in _SQLITE_SUFFIXES:
            Path(f"{self.partial}{suffix}").unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileRefused(path=str(self.place), problem=error.strerror or str(error)) from error


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

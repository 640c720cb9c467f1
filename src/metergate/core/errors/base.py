"""What every error has: a message, a reason, and values."""

import inspect
from dataclasses import fields, is_dataclass
from typing import ClassVar

# Marks, in its metadata, a field that is for the gateway only.
UNTOLD = "untold"


class MetergateError(Exception):
    """Metergate could not do what was asked."""

    reason: ClassVar[str] = "INTERNAL"

    def metadata(self) -> dict[str, str]:
        """The error's fields as text, by name; not None, what is no affair of the app's, nor the place in a request."""
        if not is_dataclass(self):
            return {}
        values = {told.name: getattr(self, told.name) for told in fields(self) if UNTOLD not in told.metadata}
        return {name: str(value) for name, value in values.items() if value is not None and name != "field"}

    def __str__(self) -> str:
        first_line = inspect.cleandoc(self.__doc__ or "").splitlines()[0]
        return first_line.format_map(self.metadata())

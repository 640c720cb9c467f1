"""Collects what is wrong with a request, so that the app learns everything at once."""

from metergate.core.errors import RequestInvalid, Violation

# More than a status carries; a hostile request of a million bad fields must not cost a million objects.
_VIOLATIONS_MAX = 16


class Violations:
    """What was found so far."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Record one; those beyond a bound are dropped."""
        if len(self._found) < _VIOLATIONS_MAX:
            self._found.append(Violation(field, description))

    def check(self) -> None:
        """RequestInvalid if anything was found."""
        if self._found:
            raise RequestInvalid(*self._found)

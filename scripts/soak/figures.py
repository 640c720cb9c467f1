"""What a part of the soak found, and how it says how far it is."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the summary."""

    what: str
    value: str
    bar: str = ""  # what it must be; "" where it only informs
    is_met: bool = True

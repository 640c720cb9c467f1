"""Wall time."""

from typing import Protocol


class Clock(Protocol):
    """Wall time for records and expiry; monotonic time comes from the event loop."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

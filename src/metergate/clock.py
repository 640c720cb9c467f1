"""The machine's clock."""

import time


class SystemClock:
    """The machine's wall time."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        return time.time_ns() // 1_000

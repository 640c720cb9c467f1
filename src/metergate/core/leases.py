"""Which owners are dead: those that have not said for LEASE_SECONDS that they live.

How long is measured on the watcher's own clock that never goes back: from when it saw a heartbeat change until now.
Wall clocks of two machines differ and jump; whether a number is another than before, they agree on.
"""

from collections.abc import Mapping

from metergate.core.reservation import Owner

# Six heartbeats: an owner whose store takes a minute to write one has failed every request of that minute.
LEASE_SECONDS = 60.0


class Leases:
    """Watches other owners' heartbeats."""

    def __init__(self) -> None:
        self._seen: dict[Owner, tuple[int, float]] = {}  # the last heartbeat, and when it was seen first

    def dead(self, heartbeats_us: Mapping[Owner, int], now_seconds: float) -> frozenset[Owner]:
        """The owners, of those given with their last heartbeats, whose lease is over."""
        before = self._seen
        self._seen = {}
        for owner, heartbeat_us in heartbeats_us.items():
            seen_us, since_seconds = before.get(owner, (heartbeat_us, now_seconds))
            self._seen[owner] = (heartbeat_us, since_seconds if seen_us == heartbeat_us else now_seconds)
        return frozenset(owner for owner, (_, since) in self._seen.items() if now_seconds - since >= LEASE_SECONDS)

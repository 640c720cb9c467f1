"""When keys were last used: noted in memory while calls come in, written behind them."""

import asyncio
import logging
from itertools import islice
from typing import NoReturn

from metergate.core.errors import MetergateError
from metergate.ports import Clock, LedgerStore

_log = logging.getLogger(__name__)

# Who reads it asks whether a key is still in use, in days.
WRITE_SECONDS = 60.0

# About 200 bytes each: 20 MB. Of more keys a minute, the rest are noted when they are used next.
KEYS_NOTED_MAX = 100_000

# A transaction that holds up no capture for longer than any other does.
KEYS_WRITTEN_AT_ONCE = 512


class KeyUses:
    """Notes uses; ``run`` writes them, a key at most once a minute. A crash loses the last minute."""

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._noted: dict[str, int] = {}

    def note(self, key_id: str) -> None:
        """The key was used now."""
        if len(self._noted) < KEYS_NOTED_MAX or key_id in self._noted:
            self._noted[key_id] = self._clock.now_us()

    async def run(self) -> NoReturn:
        """Write what was noted, every ``WRITE_SECONDS``."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what was noted since the last time. What the store does not take now is lost: it is no credit."""
        noted, self._noted = iter(self._noted.items()), {}
        try:
            while batch := dict(islice(noted, KEYS_WRITTEN_AT_ONCE)):
                await self._store.record_key_uses(batch)
        except MetergateError as exc:
            _log.warning("when keys were last used could not be recorded: %s", exc)

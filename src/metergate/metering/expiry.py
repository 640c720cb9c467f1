"""Grants that expire in wallets nobody changes: what remains of them rolls over or becomes breakage all the same."""

import asyncio
import logging
from typing import NoReturn

from metergate.core.errors import MetergateError
from metergate.ports import Clock, LedgerStore

logger = logging.getLogger(__name__)

# Grants of one bite: some milliseconds in which captures wait.
GRANTS_AT_ONCE = 128

# Between two bites, for captures. A million plans that end at midnight take about ten minutes; a wallet that is used
# meanwhile does not wait for it.
PAUSE_SECONDS = 0.05


class ExpirySweep:
    """Looks for expired grants every so many seconds, and deals with all there are."""

    def __init__(self, ledger: LedgerStore, clock: Clock, every_seconds: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._every_seconds = every_seconds

    async def run(self) -> NoReturn:
        """Look at once, then again and again, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_seconds)

    async def look(self) -> None:
        """Deal with every grant that is over now. What the store does not take now is done the next time."""
        try:
            count = GRANTS_AT_ONCE
            while count == GRANTS_AT_ONCE:
                count = await self._ledger.expire_grants(self._clock.now_us(), GRANTS_AT_ONCE)
                await asyncio.sleep(PAUSE_SECONDS)
        except MetergateError as exc:
            logger.warning("expired grants are put off: %s", exc)
        except Exception as exc:
            logger.error("expired grants could not be dealt with", exc_info=exc)

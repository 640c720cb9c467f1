"""What keeps the ledger right and small while it serves: what nobody runs is settled, what is old is pruned."""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from metergate.core.accounts import DAY_US
from metergate.core.errors import MetergateError
from metergate.ports import Clock, LedgerStore, Recovery

logger = logging.getLogger(__name__)

# What nobody runs any more stays set aside for at most this long; a look reads the open reservations, a page or two.
SWEEP_SECONDS = 30.0

# Reservations of one transaction of pruning: some milliseconds in which captures wait.
PRUNED_AT_ONCE = 256

# Between two of them, for captures: 5,000 reservations a second are pruned at most, as fast as they can be made.
PRUNE_PAUSE_SECONDS = 0.05


class Upkeep:
    """Does both, again and again. ``told`` hears of each look for abandoned reservations, ``pruned`` of each batch."""

    def __init__(
        self,
        ledger: LedgerStore,
        clock: Clock,
        is_running: Callable[[str], bool],
        *,
        retention_days: int,
        swept: Callable[[Recovery], None],
        pruned: Callable[[int], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._is_running = is_running
        self._retention_us = retention_days * DAY_US
        self._swept = swept
        self._pruned = pruned

    async def run(self) -> NoReturn:
        """Every ``SWEEP_SECONDS``, until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Settle what nobody runs, then prune what is old. What the store does not take now is done the next time."""
        try:
            self._swept(await self._ledger.recover_abandoned(self._is_running))
            await self._prune()
        except MetergateError as exc:
            logger.warning("the ledger's upkeep is put off: %s", exc)
        except Exception as exc:
            logger.error("the ledger's upkeep failed", exc_info=exc)

    async def _prune(self) -> None:
        closed_before_us = self._clock.now_us() - self._retention_us
        while True:
            count = await self._ledger.prune_reservations(closed_before_us, count_max=PRUNED_AT_ONCE)
            self._pruned(count)
            if count < PRUNED_AT_ONCE:
                return
            await asyncio.sleep(PRUNE_PAUSE_SECONDS)

"""Audits some subscribers' books at a time while the gateway serves, round and round through all of them."""

import asyncio
import logging
import secrets
import string
from collections.abc import Callable
from contextlib import aclosing
from typing import NoReturn

from metergate.core.audit import Audit, AuditRound, Difference
from metergate.core.errors import MetergateError
from metergate.ports import LedgerStore

logger = logging.getLogger(__name__)

# Differences that one round writes to the log: enough to begin with; `metergate ledger verify` names the others.
DIFFERENCES_LOGGED_MAX = 20


class Auditor:
    """Audits ``sample_subscribers`` at a time. ``told`` hears of every round that was finished."""

    def __init__(
        self,
        ledger: LedgerStore,
        monotonic: Callable[[], float],
        *,
        sample_subscribers: int,
        interval_seconds: float,
        told: Callable[[AuditRound], None],
    ) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._sample_subscribers = sample_subscribers
        self._interval_seconds = interval_seconds
        self._told = told
        # A gateway that is restarted every day must not audit the same ones every day.
        self._after: str | None = secrets.choice(string.ascii_lowercase + string.digits)

    async def run(self) -> NoReturn:
        """A round an interval, the first at once, until it is cancelled."""
        while True:
            try:
                self._told(await self.look())
            except MetergateError as exc:
                logger.warning("the ledger could not be audited: %s", exc)
            except Exception as exc:
                logger.error("the auditor failed", exc_info=exc)
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> AuditRound:
        """Audit the next subscribers. It rests as long as it works, so that it takes half a core at most."""
        audit, found, different = Audit(), list[Difference](), 0
        began_seconds = worked_until_seconds = self._monotonic()
        balances = await self._ledger.account_balances()
        # Not None, which stands for the whole ledger: all closed reservations would be read before anything else.
        async with aclosing(self._ledger.audit(after=self._after or "")) as ledgers:
            async for subscriber in ledgers:
                differences = await audit.check(subscriber)
                self._after = subscriber.wallet.subscriber_id
                different += bool(differences)
                found += differences
                if audit.subscribers >= self._sample_subscribers:
                    break
                await asyncio.sleep(self._monotonic() - worked_until_seconds)
                worked_until_seconds = self._monotonic()
        if audit.subscribers < self._sample_subscribers:
            self._after = None  # that were the last ones
        for difference in found[:DIFFERENCES_LOGGED_MAX]:
            logger.error("the ledger's books differ: %s", difference.sentence)
        return AuditRound(
            subscribers=audit.subscribers,
            different=different,
            differences=tuple(found),
            account_balances=balances,
            seconds=self._monotonic() - began_seconds,
        )

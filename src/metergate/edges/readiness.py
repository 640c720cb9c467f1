"""Whether this gateway can serve: its store takes a write, and a backend takes requests.

It is looked at every few seconds, never when somebody asks: so a question costs nothing, however often it is asked.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from grpc_health.v1 import health, health_pb2

from metergate.core.errors import MetergateError
from metergate.metering.pool import Health, Pool
from metergate.ports import LedgerStore
from metergate.v1 import account_pb2, catalog_pb2, inference_pb2

logger = logging.getLogger(__name__)

# A balancer that asks every few seconds loses this much again; a look costs one commit and one request a backend.
LOOK_SECONDS = 2.0

# A commit takes milliseconds and a connection less: what takes this long would keep requests waiting too.
ANSWER_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the last look found."""

    ledger_problem: str = "it was not looked at yet"  # "" if it takes writes
    do_books_differ: bool = False  # the audit found it, and admissions were to stop then
    backends: Mapping[str, Health] = field(default_factory=dict)  # by backend id
    is_draining: bool = False

    @property
    def is_ledger_writable(self) -> bool:
        """Whether the store took the last write."""
        return not self.ledger_problem

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        can_serve = self.is_ledger_writable and bool(self.usable())
        return can_serve and not self.do_books_differ and not self.is_draining

    def usable(self) -> list[str]:
        """The backends that requests go to."""
        return [backend_id for backend_id, health in self.backends.items() if health.is_usable]

    def as_json(self) -> dict[str, object]:
        """The same for people and programs."""
        return {
            "ready": self.is_ready,
            "checks": {
                "ledger": self.ledger_problem or "ok",
                "audit": "the books differ" if self.do_books_differ else "ok",
                "backends": {backend_id: health.value for backend_id, health in self.backends.items()},
                "draining": self.is_draining,
            },
        }


class Readiness:
    """Looks, and remembers."""

    def __init__(self, ledger: LedgerStore, pool: Callable[[], Pool]) -> None:
        self._ledger = ledger
        self._pool = pool
        self.report = Report()

    async def look(self) -> Report:
        """Look at everything at once; never longer than ``ANSWER_SECONDS_MAX`` or ``LOOK_SECONDS_MAX``."""
        async with asyncio.TaskGroup() as looking:
            ledger = looking.create_task(self._ledger_problem())
            backends = looking.create_task(self._pool().look())
        before = self.report
        self.report = replace(before, ledger_problem=ledger.result(), backends=backends.result())
        if self.report.as_json() != before.as_json():
            logger.log(
                logging.INFO if self.report.is_ready else logging.WARNING,
                "%s: ledger %s; backends: %s",
                "ready" if self.report.is_ready else "not ready",
                self.report.ledger_problem or "ok",
                ", ".join(f"{name} {health.value}" for name, health in self.report.backends.items()) or "none",
            )
        return self.report

    async def watch(self, tell: Callable[[Report], Awaitable[None]], seconds: float = LOOK_SECONDS) -> NoReturn:
        """Keep looking and telling; runs until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await tell(await self.look())

    def stop(self) -> Report:
        """Be ready for no requests any more: the ledger's books differ."""
        self.report = replace(self.report, do_books_differ=True)
        return self.report

    def drain(self) -> Report:
        """Be ready for nothing any more."""
        self.report = replace(self.report, is_draining=True)
        return self.report

    async def _ledger_problem(self) -> str:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._ledger.check()
        except TimeoutError:
            return f"it did not take a write within {ANSWER_SECONDS_MAX:g} seconds"
        except MetergateError as exc:
            return str(exc)
        except Exception as exc:  # noqa: BLE001 - a defect of the store must not end the looking
            return type(exc).__name__
        return ""


# What each service needs; "" is the whole gateway.
_NEEDS: Mapping[str, Callable[[Report], bool]] = {
    "": lambda report: report.is_ready,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name: lambda report: report.is_ready,
    account_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name: lambda report: report.is_ledger_writable,
    catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name: lambda report: True,
}


async def tell_health(servicer: health.aio.HealthServicer, report: Report) -> None:
    """Set the gRPC health of every service; once the servicer was told to shut down, it stays NOT_SERVING."""
    for service, is_served in _NEEDS.items():
        statuses = health_pb2.HealthCheckResponse
        await servicer.set(service, statuses.SERVING if is_served(report) else statuses.NOT_SERVING)

"""What every request of the use case shares."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from metergate.metering.limits import Limits
from metergate.metering.replays import ReplayBuffer
from metergate.ports import Clock, ContentPolicy, LedgerStore

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class BackgroundTasks:
    """Work that no call's cancellation reaches: settlements, and what they need."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def spawn(self, work: Awaitable[Result]) -> "asyncio.Future[Result]":
        """Start work, of a coroutine in a task, and keep it until it is done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Wait until none is left, those included that are started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The ports and bounds that requests run with."""

    ledger: LedgerStore
    clock: Clock
    new_id: Callable[[], str]  # a new id, unique for ever
    monotonic: Callable[[], float]  # seconds, of a clock that never goes back
    limits: Limits
    replays: ReplayBuffer
    tasks: BackgroundTasks
    policy: ContentPolicy | None = None  # asked about all text before it is delivered; None: nothing is asked

"""Group commit: when the last commit returns, everything that is queued goes into the next one.

Under load, what nobody's first token waits for does not begin the next one at once: see ``wait_s``.

The writer owns an operation from the moment it is queued: a caller that is cancelled stops waiting, and nothing else.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from metergate.core.errors import MetergateError, Overloaded, StoreUnavailable
from metergate.ports import Commit

logger = logging.getLogger(__name__)

Operation = TypeVar("Operation")

# Operations in one transaction: SQLite writes 50,000 to 100,000 captures/s at this size, and gains little above it.
BATCH_OPERATIONS_MAX = 512

# Queued operations above which new work is refused: 16 batches, some 0.2 s of writing on the slowest machine measured.
# Captures and settles are never refused for it: a stream has one of them in flight, so open streams bound them, and a
# settle that was refused would leave credit set aside.
QUEUED_OPERATIONS_MAX = 8_192

# A commit costs about the same CPU and the same write to disk for one operation as for forty, a delivery the same for
# one token as for two, and what is done for many requests one after the other costs half of what it costs for each
# alone, between other work. So under load (the last batch was of at least ``SHARED_OPERATIONS_MIN``) operations wait
# for those of other requests, and captures for their own streams' next tokens: until the writer has rested four times
# as long as it worked, and the longer the more requests share a commit; never beyond ``WAIT_S_MAX`` after the last
# commit began, at which an app still gets some 25 deliveries a second. What a first token waits for does not wait, and
# nothing waits with it; nor does a queue that fills.
WAIT_S_EACH = 0.0004  # for each operation of the last batch
WAIT_FACTOR = 5  # of the time that the last commit took
WAIT_S_MAX = 0.032
SHARED_OPERATIONS_MIN = 4
WAITING_OPERATIONS_MAX = 128

# Waits between attempts to open the store again, doubling: long enough not to hammer a full disk, short enough that
# a store which came back is used within seconds.
REOPEN_WAIT_S_MIN = 0.1
REOPEN_WAIT_S_MAX = 5.0


class GroupCommit(Generic[Operation]):
    """Hands queued operations to ``commit`` on one thread, in batches, and answers each caller after the commit.

    ``commit`` returns a result for each operation (a MetergateError is raised to that caller alone) or raises, which
    fails the whole batch with StoreUnavailable. ``reopen`` is called, at most once a wait, after such a failure.
    ``observe`` is told of every batch; ``take_expired`` returns what became breakage since it was asked last.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Operation]], list[object]],
        *,
        is_open: Callable[[], bool],
        reopen: Callable[[], None],
        observe: Callable[[Commit], None],
        take_expired: Callable[[], int],
    ) -> None:
        self._commit = commit
        self._is_open = is_open
        self._reopen = reopen
        self._observe = observe
        self._take_expired = take_expired
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._queue: deque[tuple[Operation, asyncio.Future[object]]] = deque()
        self._queued = asyncio.Event()
        self._is_closing = False
        self._is_urgent = False  # something is queued that does not wait for others
        self._waiting: asyncio.Future[None] | None = None  # while a commit is put off
        self._reopen_wait_s = REOPEN_WAIT_S_MIN
        self._reopen_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="ledger-writer")

    @property
    def queued(self) -> int:
        """Operations that wait for the next batch."""
        return len(self._queue)

    def submit(self, operation: Operation, *, is_new_work: bool, is_urgent: bool = True) -> "asyncio.Future[Any]":
        """Queue an operation and return its outcome to come. Overloaded for new work while the queue is full.

        One that is not urgent may wait for others, for no longer than ``WAIT_S_MAX``.
        """
        future: asyncio.Future[object] = self._loop.create_future()
        if self._is_closing:
            future.set_exception(StoreUnavailable())
            return future
        if is_new_work and len(self._queue) >= QUEUED_OPERATIONS_MAX:
            future.set_exception(Overloaded(limit=f"{QUEUED_OPERATIONS_MAX} operations waiting for its store"))
            return future
        self._queue.append((operation, future))
        if is_urgent or len(self._queue) >= WAITING_OPERATIONS_MAX:
            self._hurry()
        if len(self._queue) == 1:
            self._queued.set()
        return future

    def _hurry(self) -> None:
        self._is_urgent = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def close(self) -> None:
        """Commit what is queued and stop."""
        self._is_closing = True
        self._hurry()
        self._queued.set()
        await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        began_seconds, seconds, count = 0.0, 0.0, 0
        while self._queue or not self._is_closing:
            if not self._queue:
                self._queued.clear()
                await self._queued.wait()
                continue
            await self._gather(began_seconds + wait_s(count, seconds) - time.monotonic())
            self._is_urgent = len(self._queue) > BATCH_OPERATIONS_MAX
            count = min(len(self._queue), BATCH_OPERATIONS_MAX)
            batch = [self._queue.popleft() for _ in range(count)]
            began_seconds, has_failed = time.monotonic(), False
            try:
                results = await self._in_thread([operation for operation, _ in batch])
            except Exception as exc:
                has_failed = True
                if not isinstance(exc, StoreUnavailable):
                    logger.error("a batch of %d operations failed", count, exc_info=exc)
                results = [StoreUnavailable() for _ in batch]
            seconds = time.monotonic() - began_seconds
            for (_, future), result in zip(batch, results, strict=True):
                _answer(future, result)
            self._observe(
                Commit(
                    operations=count,
                    seconds=seconds,
                    queued=len(self._queue),
                    expired_microcredits=self._take_expired(),
                    has_failed=has_failed,
                )
            )

    async def _gather(self, seconds_max: float) -> None:
        """Let more come, until something urgent is queued."""
        if self._is_urgent or seconds_max <= 0:
            return
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(seconds_max, self._hurry)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    async def _in_thread(self, operations: list[Operation]) -> list[object]:
        loop = self._loop
        if not self._is_open():
            if loop.time() < self._reopen_at:
                raise StoreUnavailable
            try:
                await loop.run_in_executor(self._thread, self._reopen)
            except Exception as exc:
                logger.error("the ledger cannot be opened again yet: %s", exc)
                self._put_off_reopening(loop.time())
                raise StoreUnavailable from exc
        try:
            results = await loop.run_in_executor(self._thread, self._commit, operations)
        except Exception:
            self._put_off_reopening(loop.time())
            raise
        self._reopen_wait_s = REOPEN_WAIT_S_MIN
        return results

    def _put_off_reopening(self, now_s: float) -> None:
        self._reopen_at = now_s + self._reopen_wait_s
        self._reopen_wait_s = min(2 * self._reopen_wait_s, REOPEN_WAIT_S_MAX)


def wait_s(operations: int, seconds: float) -> float:
    """How long after a batch of so many operations, which took so long, began the next one may be put off."""
    if operations < SHARED_OPERATIONS_MIN:
        return 0.0
    return min(max(WAIT_S_EACH * operations, WAIT_FACTOR * seconds), WAIT_S_MAX)


def _answer(future: asyncio.Future[object], result: object) -> None:
    if future.done():
        return  # its caller was cancelled
    if isinstance(result, MetergateError):
        future.set_exception(result)
    else:
        future.set_result(result)

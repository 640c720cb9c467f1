"""LedgerStore on SQLite."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Self, cast
from uuid import uuid4

from metergate.core.errors import ErasureUnfinished, MetergateError, Overloaded, ResourceNotFound, StoreUnavailable
from metergate.core.leases import Leases
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    EraseSubscriber,
    Expire,
    Recover,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    RevokeAuthorization,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.rating import RateCard
from metergate.core.reservation import Owner
from metergate.core.rows import ApiKey, Authorization, Correction, Erasure, Grant, Wallet
from metergate.ports import Clock, Commit, Recovery
from metergate.stores.group_commit import GroupCommit
from metergate.stores.sqlite import expiring, setting_up
from metergate.stores.sqlite.connection import FileLock, check_path
from metergate.stores.sqlite.erasing import end_erasure, erase_piece, leaves_copies
from metergate.stores.sqlite.filter_keeping import FilterKeeping
from metergate.stores.sqlite.reader import SqliteLedgerReader
from metergate.stores.sqlite.upkeep import OpenReservation, heartbeats, open_reservations, prune
from metergate.stores.sqlite.write_operations import SetUp, WriteOperation
from metergate.stores.sqlite.writer import SqliteWriter

logger = logging.getLogger(__name__)

# How long an erasure waits for whoever reads the ledger, before it says that copies may be left: a look at a table
# takes milliseconds; an audit of a large ledger, for which nobody waits at a terminal, minutes.
WAL_WAIT_SECONDS = 10.0
WAL_LOOK_SECONDS = 0.25


class SqliteLedgerStore(SqliteLedgerReader):
    """The whole LedgerStore: the only process that writes the file, and a reader beside its writer."""

    def __init__(
        self, path: Path, lock: FileLock, writer: SqliteWriter, clock: Clock, observe: Callable[[Commit], None]
    ) -> None:
        super().__init__(path)
        self._clock = clock
        self._leases = Leases()
        self._lock = lock
        self._writer = writer
        self._filter_keeping: asyncio.Task[NoReturn] | None = None
        self._commits: GroupCommit[WriteOperation] = GroupCommit(
            writer.commit,
            is_open=lambda: writer.is_open,
            reopen=self._reopen,
            observe=observe,
            take_expired=writer.take_expired,
        )

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        owner_id: str,
        create: bool,
        observe: Callable[[Commit], None] = lambda commit: None,
        cache_mebibytes: int | None = None,
        request_filter_mebibytes: int | None = None,
    ) -> Self:
        """Open the ledger, or with ``create`` make a new one, and settle what a dead owner left open.

        ``observe`` is told of every transaction, in the event loop, and must not raise. ``cache_mebibytes`` is of
        a gateway's cache, into which wallets are read beforehand; None: a command's. ``request_filter_mebibytes`` is of
        a gateway's memory of requests that were charged; None: each request's place among them is read.

        StoreRefused if the file is missing, foreign, newer, read-only, no database, or written by another process;
        StoreUnavailable if storage fails meanwhile.
        """
        writer = SqliteWriter(
            path,
            clock=clock,
            owner_id=owner_id,
            cache_mebibytes=cache_mebibytes,
            request_filter_mebibytes=request_filter_mebibytes,
        )
        opening = asyncio.create_task(cls._open(path, writer, clock, create, observe))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])  # the thread that opens it cannot be stopped; nothing may stay locked
            if opening.exception() is None:
                await opening.result().close()
            raise

    @classmethod
    async def _open(
        cls,
        path: Path,
        writer: SqliteWriter,
        clock: Clock,
        create: bool,
        observe: Callable[[Commit], None],
    ) -> Self:
        lock = await asyncio.to_thread(_lock_and_open, path, writer, create)
        store = cls(path, lock, writer, clock, observe)
        try:
            await store._in_thread(store._current_query)
            store._keep_request_filter()
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def owner(self) -> Owner:
        """This process in its present epoch; a new one begins whenever the file had to be opened again."""
        return self._writer.owner

    @property
    def content_key(self) -> bytes:
        """The secret this ledger keys content hashes with."""
        return self._writer.content_key

    @property
    def has_whole_request_filter(self) -> bool:
        """Whether of a request that was never charged nothing is read to see so."""
        filter_ = self._writer.request_filter
        return filter_ is not None and filter_.is_whole

    @property
    def queued_operations(self) -> int:
        """Operations that wait for the next transaction."""
        return self._commits.queued

    async def check(self) -> None:
        """Write this owner's heartbeat, durably; a full queue does not refuse it."""
        await self._commits.submit(SetUp(self._writer.beat), is_new_work=False)

    def _keep_request_filter(self) -> None:
        filter_ = self._writer.request_filter
        if filter_ is None:
            return
        keeping = FilterKeeping(
            self._path,
            filter_,
            self.content_key,
            read=lambda function: self._read(lambda query: function(query.connection)),
            write=lambda set_up: self._commits.submit(set_up, is_new_work=False, is_urgent=False),
        )
        self._filter_keeping = asyncio.create_task(keeping.run(), name="ledger-filter")

    async def _close(self) -> None:
        if self._filter_keeping is not None:
            self._filter_keeping.cancel()
            await asyncio.wait([self._filter_keeping])
        await self._commits.close()
        await super()._close()
        await asyncio.to_thread(self._close_writer)

    def _reopen(self) -> None:
        self.drop()  # a reader that holds a lost WAL would keep the new connection from making another
        self._writer.open(create=False)

    def _close_writer(self) -> None:
        self._writer.close()
        self._lock.release()

    # --- credit -----------------------------------------------------------------------------------------------------

    def reserve(self, operation: Reserve, *, is_urgent: bool = True) -> Awaitable[Reserved | Replayed]:
        """Set credit aside for a request. StoreUnavailable too if the operation's owner is an earlier epoch."""
        return self._commits.submit(operation, is_new_work=True, is_urgent=is_urgent)

    def capture(self, operation: Capture) -> Awaitable[Captured]:
        """Debit a reservation before a delivery."""
        is_first = operation.delivered_microcredits == 0  # somebody waits for the first token
        return self._commits.submit(operation, is_new_work=False, is_urgent=is_first)

    def settle(self, operation: Settle) -> Awaitable[Settled]:
        """Close a reservation."""
        return self._commits.submit(operation, is_new_work=False, is_urgent=False)

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        return cast(Grant, await self._commits.submit(operation, is_new_work=True))

    async def recover_abandoned(self, is_running: Callable[[str], bool]) -> Recovery:
        """Settle every open reservation that nobody runs any more."""
        # What is read is committed; what was committed before, a request that still runs it has been known since.
        rows, heartbeats_us = await self._read(
            lambda query: (tuple(open_reservations(query.connection)), heartbeats(query.connection))
        )
        heartbeats_us.pop(self.owner, None)
        dead = self._leases.dead(heartbeats_us, time.monotonic())
        abandoned = [
            row for row in rows if (row.owner == self.owner and not is_running(row.reservation_id)) or row.owner in dead
        ]
        if abandoned:  # a request that ended since then is not known any more, but its reservation is closed
            still_open = set(await self._read(lambda query: tuple(open_reservations(query.connection))))
            abandoned = [row for row in abandoned if row in still_open]
        results = await asyncio.gather(*(self._recover(row) for row in abandoned), return_exceptions=True)
        settled = sum(isinstance(result, Settled) for result in results)
        return Recovery(settled=settled, stuck=len(results) - settled)

    async def _recover(self, row: OpenReservation) -> Settled:
        operation = Recover(
            reservation_id=row.reservation_id,
            subscriber_id=row.subscriber_id,
            charge_id=uuid4().hex,
            survivor=None,
            now_us=self._clock.now_us(),
        )
        try:
            settled = cast(Settled, await self._commits.submit(operation, is_new_work=False))
        except MetergateError as exc:
            logger.error(
                "reservation %r that nobody runs cannot be settled and stays open: %s", row.reservation_id, exc
            )
            raise
        logger.warning("reservation %r, which nobody ran any more, is settled", row.reservation_id)
        return settled

    async def prune_reservations(self, closed_before_us: int, *, count_max: int) -> int:
        """Remove the oldest closed reservations, at most so many, that were closed before a time."""
        return cast(int, await self._set_up(SetUp(lambda connection: prune(connection, closed_before_us, count_max))))

    async def expire_grants(self, now_us: int, limit: int) -> int:
        """Move on what remains of grants whose time is over; how many grants that were, at most ``limit``."""
        grants = await self._read(lambda query: expiring.expired_grants(query.connection, now_us, limit))
        if not grants:
            return 0
        subscriber_ids = dict.fromkeys(grant.subscriber_id for grant in grants)
        operations = [Expire(subscriber_id=subscriber_id, now_us=now_us) for subscriber_id in subscriber_ids]
        outcomes = await asyncio.gather(
            *(self._commits.submit(operation, is_new_work=True) for operation in operations), return_exceptions=True
        )
        erased = set()
        for operation, outcome in zip(operations, outcomes, strict=True):
            if isinstance(outcome, StoreUnavailable | Overloaded):
                raise outcome
            if isinstance(outcome, ResourceNotFound | ErasureUnfinished):
                # Meanwhile: the next sweep finds its grants by its pseudonym.
                erased.add(operation.subscriber_id)
            elif isinstance(outcome, BaseException):  # books that cannot be read: they must not keep all others from it
                logger.error("grants of %r cannot expire: %s", operation.subscriber_id, outcome)
        swept = [grant for grant in grants if grant.subscriber_id not in erased]
        await self._set_up(SetUp(lambda connection: expiring.mark_swept(connection, swept)))
        return len(grants)

    # --- corrections ------------------------------------------------------------------------------------------------

    async def refund(self, operation: Refund) -> Correction:
        """Give back part of a charge."""
        return await self._correct(operation)

    async def adjust(self, operation: Adjust) -> Correction:
        """Give credit, or take what is available."""
        return await self._correct(operation)

    async def reverse(self, operation: Reverse) -> Correction:
        """Take back a grant whose payment was taken back."""
        return await self._correct(operation)

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        """Stop a wallet, or let it be spent from again."""
        return await self._correct(operation)

    async def _correct(self, operation: Refund | Adjust | Reverse | SetWalletState) -> Correction:
        return cast(Correction, await self._commits.submit(operation, is_new_work=True))

    # --- setting up -------------------------------------------------------------------------------------------------

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        """Open a wallet."""
        return cast(Wallet, await self._commits.submit(operation, is_new_work=True))

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        """Forget a subscriber, in the WAL and in free space too, in pieces between which other operations go."""
        piece = SetUp(partial(erase_piece, operation=operation))
        while await self._commits.submit(piece, is_new_work=False):
            pass
        end = SetUp(partial(end_erasure, subscriber_id=operation.subscriber_id), leaves_traces=True)
        erasure = cast(Erasure, await self._commits.submit(end, is_new_work=False))
        return replace(erasure, leaves_copies=erasure.leaves_copies or await self._leaves_copies(erasure))

    async def _leaves_copies(self, erasure: Erasure) -> bool:
        """Whether copies are left once readers that began before have had some time to leave the WAL."""
        until_seconds = time.monotonic() + WAL_WAIT_SECONDS
        look = SetUp(partial(leaves_copies, pseudonym=erasure.subscriber_id))
        while await self._commits.submit(look, is_new_work=False):
            if time.monotonic() > until_seconds:
                return True
            await asyncio.sleep(WAL_LOOK_SECONDS)
        return False

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        return cast(Authorization, await self._commits.submit(operation, is_new_work=True))

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash, or answer with the first, revoked or not.

        ResourceNotFound without its authorization, AuthorizationRevoked if that was revoked, IdConflict if the id or
        the secret is another key's.
        """
        return cast(ApiKey, await self._set_up(SetUp(lambda connection: setting_up.add_key(connection, key))))

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key; ResourceNotFound if there is none. A second revocation keeps the first's time."""
        return cast(
            ApiKey, await self._set_up(SetUp(lambda connection: setting_up.revoke_key(connection, key_id, now_us)))
        )

    async def revoke_authorization(self, authorization_id: str, now_us: int) -> int:
        """Revoke an authorization with all its keys; ResourceNotFound if there is none. Returns when it first was."""
        operation = RevokeAuthorization(authorization_id=authorization_id, now_us=now_us)
        authorization = cast(Authorization, await self._commits.submit(operation, is_new_work=True))
        assert authorization.revoke_time_us is not None
        return authorization.revoke_time_us

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        """Record when keys, by id, were last used; never earlier than was recorded. Unknown keys are left out."""
        times = dict(use_times_us)
        await self._set_up(SetUp(lambda connection: setting_up.record_key_uses(connection, times)))

    async def add_rate_cards(self, cards: Sequence[RateCard]) -> None:
        """Record rate cards for audits; IdConflict if one was recorded with other prices: cards are immutable."""
        await self._set_up(SetUp(lambda connection: setting_up.add_rate_cards(connection, tuple(cards))))

    async def _set_up(self, set_up: SetUp) -> object:
        return await self._commits.submit(set_up, is_new_work=True)


def _lock_and_open(path: Path, writer: SqliteWriter, create: bool) -> FileLock:
    check_path(path, create=create)  # before the lock leaves its file beside it
    lock = FileLock(path)
    try:
        writer.open(create=create)
        writer.warm()
    except BaseException:
        lock.release()
        raise
    return lock

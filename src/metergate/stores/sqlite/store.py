"""LedgerStore on SQLite."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, cast

from metergate.core.errors import Overloaded, StoreUnavailable
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    Expire,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.rating import RateCard
from metergate.core.reservation import Owner
from metergate.core.rows import ApiKey, Authorization, Correction, Grant, Wallet
from metergate.ports import Clock, Commit
from metergate.stores.group_commit import GroupCommit
from metergate.stores.sqlite import expiring, setting_up
from metergate.stores.sqlite.connection import FileLock, check_path
from metergate.stores.sqlite.reader import SqliteLedgerReader
from metergate.stores.sqlite.writer import SetUp, SqliteWriter, WriteOperation

logger = logging.getLogger(__name__)


class SqliteLedgerStore(SqliteLedgerReader):
    """The whole LedgerStore: the only process that writes the file, and a reader beside its writer."""

    def __init__(self, path: Path, lock: FileLock, writer: SqliteWriter, observe: Callable[[Commit], None]) -> None:
        super().__init__(path)
        self._lock = lock
        self._writer = writer
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
    ) -> Self:
        """Open the ledger, or with ``create`` make a new one, and settle what a dead owner left open.

        ``observe`` is told of every transaction, in the event loop, and must not raise.

        StoreRefused if the file is missing, foreign, newer, read-only, no database, or written by another process;
        StoreUnavailable if storage fails meanwhile.
        """
        opening = asyncio.create_task(cls._open(path, clock, owner_id, create, observe))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])  # the thread that opens it cannot be stopped; nothing may stay locked
            if opening.exception() is None:
                await opening.result().close()
            raise

    @classmethod
    async def _open(
        cls, path: Path, clock: Clock, owner_id: str, create: bool, observe: Callable[[Commit], None]
    ) -> Self:
        writer = SqliteWriter(path, clock=clock, owner_id=owner_id)
        lock = await asyncio.to_thread(_lock_and_open, path, writer, create)
        store = cls(path, lock, writer, observe)
        try:
            await store._in_thread(store._current_query)
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
    def queued_operations(self) -> int:
        """Operations that wait for the next transaction."""
        return self._commits.queued

    async def check(self) -> None:
        """Write this owner's heartbeat, durably; a full queue does not refuse it."""
        await self._commits.submit(SetUp(self._writer.beat), is_new_work=False)

    async def _close(self) -> None:
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

    async def reserve(self, operation: Reserve) -> Reserved | Replayed:
        """Set credit aside for a request. StoreUnavailable too if the operation's owner is an earlier epoch."""
        return cast(Reserved | Replayed, await self._commits.submit(operation, is_new_work=True))

    async def capture(self, operation: Capture) -> Captured:
        """Debit a reservation before a delivery."""
        is_first = operation.delivered_microcredits == 0  # somebody waits for the first token
        return cast(Captured, await self._commits.submit(operation, is_new_work=False, is_urgent=is_first))

    async def settle(self, operation: Settle) -> Settled:
        """Close a reservation."""
        return cast(Settled, await self._commits.submit(operation, is_new_work=False))

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        return cast(Grant, await self._commits.submit(operation, is_new_work=True))

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
        for operation, outcome in zip(operations, outcomes, strict=True):
            if isinstance(outcome, StoreUnavailable | Overloaded):
                raise outcome
            if isinstance(outcome, BaseException):  # books that cannot be read: they must not keep all others from it
                logger.error("grants of %r cannot expire: %s", operation.subscriber_id, outcome)
        await self._set_up(SetUp(lambda connection: expiring.mark_swept(connection, grants)))
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

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        return cast(Authorization, await self._commits.submit(operation, is_new_work=True))

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash, or answer with the first, revoked or not.

        ResourceNotFound without its authorization, IdConflict if the id or the secret is another key's.
        """
        return cast(ApiKey, await self._set_up(SetUp(lambda connection: setting_up.add_key(connection, key))))

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key; ResourceNotFound if there is none. A second revocation keeps the first's time."""
        return cast(
            ApiKey, await self._set_up(SetUp(lambda connection: setting_up.revoke_key(connection, key_id, now_us)))
        )

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
    except BaseException:
        lock.release()
        raise
    return lock

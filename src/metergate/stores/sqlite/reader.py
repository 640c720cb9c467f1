"""Reading a ledger while a gateway may be writing it."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from metergate.core.accounts import AccountBalance
from metergate.core.audit import SubscriberLedger
from metergate.core.errors import StoreRefused, StoreUnavailable
from metergate.core.operations import Replayed
from metergate.core.rating import RateCard
from metergate.core.reservation import Reservation
from metergate.core.rows import Charge, Correction, Grant, Transfer
from metergate.ports import ALL_DAYS, Balance, ChargeFilter, Days, Grantee, Page, Times, TransferFilter, UsageComparison
from metergate.stores.sqlite.auditing import read_ledgers
from metergate.stores.sqlite.connection import Inode, check_path, inode_of, open_for_reading
from metergate.stores.sqlite.queries import Query
from metergate.stores.sqlite.reading_all import Run, read_charges, read_transfers
from metergate.stores.sqlite.setting_up import new_rate_cards

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Reads waiting for the one reading thread; each takes well under a millisecond, so this is about a second of waiting.
PENDING_READS_MAX = 2_000


class SqliteLedgerReader:
    """The reading half of LedgerStore, over a read-only connection on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._query: Query | None = None
        self._database: Inode | None = None  # the file that was opened first: never another
        self._closing: asyncio.Task[None] | None = None
        self._pending_reads = 0

    @classmethod
    async def open_read_only(cls, path: Path) -> Self:
        """A reader of an existing ledger, for verifying it. StoreRefused if it is none of ours."""
        reader = cls(path)
        try:
            await reader._in_thread(reader._current_query)
        except BaseException:
            await reader.close()
            raise
        return reader

    async def close(self) -> None:
        """Finish what was asked for and close, whether or not the caller waits. A second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._in_thread(self._drop_query)
        self._thread.shutdown()

    # --- LedgerStore: reading ---------------------------------------------------------------------------------------

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        """Whom a key stands for, revoked or not; None if the key is unknown."""
        return await self._read(lambda query: query.grantee(secret_hash))

    async def find_request(
        self, subscriber_id: str, authorization_id: str, request_id: str, now_us: int
    ) -> Replayed | Reservation | None:
        """What became of a request: its charge, or the reservation that it runs with; None: neither."""
        return await self._read(lambda query: query.request(subscriber_id, authorization_id, request_id, now_us))

    async def list_keys(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grantee]:
        """Every key that may spend of a wallet, expired and revoked ones included, by key id."""
        return await self._read(lambda query: query.keys(subscriber_id, cursor, size))

    async def balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        """The wallet now. ResourceNotFound without such a subscriber, or authorization of it."""
        return await self._read(lambda query: query.balance(subscriber_id, authorization_id, now_us))

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        return await self._read(lambda query: query.grants(subscriber_id, cursor, size))

    async def list_charges(
        self, subscriber_id: str, where: ChargeFilter, *, cursor: str | None, size: int
    ) -> Page[Charge]:
        """Charges, newest first."""
        return await self._read(lambda query: query.charges(subscriber_id, where, cursor, size))

    async def get_charge(self, subscriber_id: str, charge_id: str) -> Charge:
        """One charge of this subscriber; ResourceNotFound otherwise."""
        return await self._read(lambda query: query.charge(subscriber_id, charge_id))

    async def list_transfers(
        self, subscriber_id: str, where: TransferFilter, *, cursor: str | None, size: int
    ) -> Page[Transfer]:
        """Transfers, newest first."""
        return await self._read(lambda query: query.transfers(subscriber_id, where, cursor, size))

    async def list_corrections(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Correction]:
        """Corrections, newest first."""
        return await self._read(lambda query: query.corrections(subscriber_id, cursor, size))

    async def check_rate_cards(self, cards: Sequence[RateCard]) -> None:
        """IdConflict if one is recorded with other content."""
        await self._read(lambda query: new_rate_cards(query.connection, cards))

    async def account_balances(self, days: Days = ALL_DAYS) -> Mapping[str, AccountBalance]:
        """What moved in and out of each account on these days, by account."""
        return await self._read(lambda query: query.account_balances(days))

    # --- LedgerStore: audit -----------------------------------------------------------------------------------------

    async def count_subscribers(self) -> int:
        """How many wallets there are."""
        return await self._read(lambda query: query.count_subscribers())

    async def compare_usage(self, settle_time_us_min: int) -> tuple[UsageComparison, ...]:
        """Counted beside reported, by day, backend and model."""
        return await self._read(lambda query: query.usage_by_day(settle_time_us_min))

    async def audit(self, *, after: str | None = None) -> AsyncGenerator[SubscriberLedger, None]:
        """The books of every subscriber after one, by id, in one consistent view."""
        async with self._reading_beside() as (connection, run), aclosing(read_ledgers(connection, run, after)) as all_:
            async for ledger in all_:
                yield ledger

    async def read_charges(self, times: Times) -> AsyncGenerator[Sequence[Charge], None]:
        """Every charge that was settled in a range of time, in order of settling."""
        async with self._reading_beside() as (connection, run), aclosing(read_charges(connection, run, times)) as pages:
            async for page in pages:
                yield page

    async def read_transfers(self, times: Times) -> AsyncGenerator[Sequence[Transfer], None]:
        """Every transfer that was posted in a range of time, by subscriber, in order of sequence."""
        async with (
            self._reading_beside() as (connection, run),
            aclosing(read_transfers(connection, run, times)) as pages,
        ):
            async for page in pages:
                yield page

    @asynccontextmanager
    async def _reading_beside(self) -> AsyncIterator[tuple[sqlite3.Connection, Run]]:
        """A connection and a thread of its own for a long read, beside all others; StoreUnavailable if it fails."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="ledger-long-read") as thread:

            async def run(function: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the function's
                try:
                    return await loop.run_in_executor(thread, function)
                except sqlite3.Error as exc:
                    raise StoreUnavailable from exc

            connection = await run(self._connect)
            try:
                yield connection, run
            finally:
                await asyncio.shield(run(connection.close))

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[[Query], Result]) -> Result:
        """StoreUnavailable if storage fails, or more reads wait than ever should."""
        if self._closing is not None or self._pending_reads >= PENDING_READS_MAX:
            raise StoreUnavailable
        self._pending_reads += 1
        try:
            return await self._in_thread(lambda: self._read_in_thread(read))
        finally:
            self._pending_reads -= 1

    def _read_in_thread(self, read: Callable[[Query], Result]) -> Result:
        try:
            return read(self._current_query())
        except (sqlite3.Error, StoreRefused) as exc:
            logger.error("reading the ledger %s failed: %s", self._path, exc)
            self._drop_query()
            raise StoreUnavailable from exc

    def _current_query(self) -> Query:
        """Opened at the first read, and again after a failure."""
        if self._query is None:
            self._query = Query(self._connect())
        return self._query

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file that was opened first; StoreRefused if another is in its place.

        A reader too would apply the WAL of the one to the other.
        """
        check_path(self._path, create=False)
        database = inode_of(self._path)
        if self._database not in (None, database):
            raise StoreRefused(path=str(self._path), problem="another file is in its place")
        connection = open_for_reading(self._path)
        self._database = database
        return connection

    def drop(self) -> None:
        """Close the connection, for good or until the next read. Called from another thread."""
        self._thread.submit(self._drop_query).result()

    def _drop_query(self) -> None:
        query, self._query = self._query, None
        if query is not None:
            query.connection.close()

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

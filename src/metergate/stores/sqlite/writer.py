"""The one writer of a ledger: opens it, recovers what a dead owner left open, and commits batches.

Plain blocking code; ``GroupCommit`` runs it on one thread. After a failed commit the connection is finished (L8): it
is closed, nothing is read back, and the next opening is a new epoch whose recovery settles what was open (L5).
"""

import logging
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path

from metergate.core.batches import Operation, Outcome, check_ids_of, subscriber_of
from metergate.core.books import Books, request_key
from metergate.core.capturing import answer, debited, is_covered
from metergate.core.errors import (
    ErasureUnfinished,
    LedgerInvariantBroken,
    MetergateError,
    StoreRefused,
    StoreUnavailable,
)
from metergate.core.ledger import Ledger
from metergate.core.operations import Capture, CaptureStatus, Recover, Reserve
from metergate.core.reservation import Owner, Reservation
from metergate.core.rows import TransferKind
from metergate.ports import Clock
from metergate.stores.sqlite import codec
from metergate.stores.sqlite.compacting import COPIES_ARE_GONE, COPIES_ARE_LEFT, compact_if_small
from metergate.stores.sqlite.connection import (
    BUSY_TIMEOUT_S,
    COMMAND_CACHE_MEBIBYTES,
    FileIdentity,
    open_for_writing,
)
from metergate.stores.sqlite.epochs import begin_epoch, forget_idle_owners, read_content_key
from metergate.stores.sqlite.erased_names import unfinished
from metergate.stores.sqlite.loading import Loader
from metergate.stores.sqlite.open_rows import OpenRows
from metergate.stores.sqlite.request_filter import RequestFilter
from metergate.stores.sqlite.saving import Before, RowsMissing, save, save_captured
from metergate.stores.sqlite.warming import warm
from metergate.stores.sqlite.write_operations import SetUp, WriteOperation, positions_in_order

logger = logging.getLogger(__name__)

# Reservations that one transaction of recovery settles: as many as a batch, so that it holds no more memory.
RECOVERY_BATCH = 512

# How often a living owner says so. It rides on a batch; an idle gateway holds no credit that anyone waits for.
HEARTBEAT_US = 10_000_000

# A reader of a long audit leaves within minutes; an attempt costs a checkpoint.
WAL_CLEANED_AGAIN_US = 1_000_000

# A statement failed because of what it was to write, not because storage did: the transaction rolls back cleanly.
CONTENT_ERRORS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)


class FilesLost(Exception):
    """The ledger's files are not any more those that the connection has open."""


Result = Outcome | object | MetergateError


class SqliteWriter:
    """Commits batches of operations. Not thread-safe: one thread at a time calls it."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        owner_id: str,
        cache_mebibytes: int | None = None,
        request_filter_mebibytes: int | None = None,
    ) -> None:
        """``cache_mebibytes``: of a gateway, which reads beforehand what its requests will need; None: of a command.

        ``request_filter_mebibytes``: of the filter of charges' requests; None: there is none.
        """
        self._path = path
        self._clock = clock
        self._owner = Owner(owner_id=owner_id, epoch=0)
        self._cache_mebibytes = cache_mebibytes
        self._connection: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None
        self._content_key = b""
        self._heartbeat_time_us = 0
        self._expired_microcredits = 0  # since it was asked last
        self._is_wal_clean = True  # False: it may hold what was erased
        self._is_written_anew = False  # the file, since something was erased last
        self._wal_cleaned_time_us = 0
        self._open = OpenRows()
        self._request_filter_mebibytes = request_filter_mebibytes
        self._request_filter: RequestFilter | None = None  # of this ledger, whatever connection is open
        self._checks_references = True
        self._forgotten: frozenset[str] | None = None  # names of who is being forgotten; None: they must be read

    @property
    def owner(self) -> Owner:
        """The present epoch."""
        return self._owner

    @property
    def content_key(self) -> bytes:
        """The store's secret for content hashes."""
        return self._content_key

    @property
    def request_filter(self) -> RequestFilter | None:
        """Which requests were never charged; None for a command, or before the ledger was opened."""
        return self._request_filter

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that no commit has failed on."""
        return self._connection is not None

    # --- opening and closing ----------------------------------------------------------------------------------------

    def open(self, *, create: bool) -> None:
        """Open or migrate the ledger, begin a new epoch, and settle what other epochs left open.

        StoreRefused if the file is not this ledger, or, when it is opened again, not the same file; StoreUnavailable
        if storage fails while it recovers.
        """
        if self._identity is not None and not self._identity.is_ledger_in_place():
            problem = "it, or its lock, was deleted or replaced while it was open; stop the gateway, then see to it"
            raise StoreRefused(path=str(self._path), problem=problem)
        cache_mebibytes = self._cache_mebibytes or COMMAND_CACHE_MEBIBYTES
        connection = open_for_writing(self._path, create=create, cache_mebibytes=cache_mebibytes)
        try:
            now_us = self._clock.now_us()
            content_key = read_content_key(connection, now_us)
            if content_key is None:
                raise StoreRefused(path=str(self._path), problem="its content key is gone; restore it from a backup")
            if self._content_key not in (b"", content_key):
                raise StoreRefused(path=str(self._path), problem="another ledger is in its place")
            self._content_key = content_key
            self._owner = begin_epoch(connection, self._owner.owner_id, now_us)
            self._heartbeat_time_us = now_us
            forget_idle_owners(connection, self._owner.epoch)
            self._identity = FileIdentity(self._path)
            if self._request_filter is None and self._request_filter_mebibytes is not None:
                self._request_filter = RequestFilter(content_key, self._request_filter_mebibytes)
        except sqlite3.Error as exc:
            connection.close()
            raise StoreRefused(path=str(self._path), problem=str(exc)) from exc
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._recover()
        self._see_to_erasures()

    def warm(self) -> None:
        """Before a gateway serves. Not when the store is opened again: then requests are waiting."""
        if self._connection is None or self._cache_mebibytes is None:
            return
        try:
            warm(self._connection, self._cache_mebibytes)
        except sqlite3.Error as exc:
            self._fail(exc)
            raise StoreUnavailable from exc

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        self._open = OpenRows()
        self._forgotten = None
        self._checks_references = True
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        except sqlite3.Error as exc:
            logger.warning("closing the ledger %s: %s", self._path, exc)

    def _recover(self) -> None:
        """Settle every ACTIVE reservation that is not this epoch's, in bounded batches.

        One that cannot be settled stays ACTIVE, for people to look into: it must not keep all others shut out.
        """
        position: codec.Columns = ("", "", "")
        settled = 0
        while rows := self._abandoned(position):
            position = rows[-1][1:]
            now_us = self._clock.now_us()
            results = self.commit(
                [
                    Recover(
                        reservation_id=reservation_id,
                        subscriber_id=subscriber_id,
                        charge_id=uuid.uuid4().hex,
                        survivor=self._owner,
                        now_us=now_us,
                    )
                    for reservation_id, subscriber_id, _, _ in rows
                ]
            )
            for (reservation_id, *_), result in zip(rows, results, strict=True):
                if isinstance(result, MetergateError):
                    logger.error("reservation %r cannot be recovered and stays open: %s", reservation_id, result)
                else:
                    settled += 1
        if settled:
            logger.warning("recovered %d reservations that another epoch left open in %s", settled, self._path)
        if self._connection is not None:  # recovery did not fail on it
            self._open.are_all = not self._abandoned(("", "", ""))

    def _abandoned(self, after: codec.Columns) -> list[codec.Columns]:
        """The next batch of other epochs' ACTIVE reservations, in the order of the index that finds them."""
        assert self._connection is not None
        try:
            return self._connection.execute(
                "SELECT reservation_id, subscriber_id, authorization_id, request_id "
                "FROM reservations INDEXED BY reservations_active WHERE state = 'ACTIVE' "
                "AND (subscriber_id, authorization_id, request_id) > (?, ?, ?) AND (owner_id, owner_epoch) <> (?, ?) "
                "ORDER BY subscriber_id, authorization_id, request_id LIMIT ?",
                (*after, self._owner.owner_id, self._owner.epoch, RECOVERY_BATCH),
            ).fetchall()
        except sqlite3.Error as exc:
            self._fail(exc)
            raise StoreUnavailable from exc

    # --- committing -------------------------------------------------------------------------------------------------

    def commit(self, operations: Sequence[WriteOperation]) -> list[Result]:
        """Carry out a batch in one transaction and return each operation's outcome or refusal, in the order given.

        StoreUnavailable if storage fails: then nothing is known of any of them.
        """
        if self._connection is None:
            raise StoreUnavailable
        if len(operations) > 1 and any(map(_leaves_traces, operations)):
            return self._commit_apart(operations)
        try:
            captures = self._covered_captures(operations)
            if captures is not None:
                return self._transact_captures(self._connection, captures)
            return self._transact(self._connection, operations)
        except CONTENT_ERRORS as exc:
            return self._commit_singly(operations, exc)
        except FilesLost as exc:
            self._rescue()
            self._fail(exc)
            raise StoreUnavailable from exc
        except (sqlite3.Error, RowsMissing, OSError) as exc:
            self._fail(exc)
            raise StoreUnavailable from exc
        except Exception as exc:  # noqa: BLE001 - a defect of ours, or a value that no column takes
            return self._commit_singly(operations, exc)

    def _commit_apart(self, operations: Sequence[WriteOperation]) -> list[Result]:
        """What erases has a transaction of its own: references are not checked in it."""
        results: dict[int, Result] = {}
        together = [position for position, operation in enumerate(operations) if not _leaves_traces(operation)]
        alone = [[position] for position, operation in enumerate(operations) if _leaves_traces(operation)]
        for positions in ([together] if together else []) + alone:
            results.update(zip(positions, self.commit([operations[position] for position in positions]), strict=True))
        return [results[position] for position in range(len(operations))]

    def _commit_singly(self, operations: Sequence[WriteOperation], cause: Exception) -> list[Result]:
        """One operation cannot be written: find it, so that the others are not refused with it."""
        assert self._connection is not None
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            self._fail(exc)
            raise StoreUnavailable from exc
        if len(operations) == 1:
            logger.error("the ledger refused an operation that cannot be written", exc_info=cause)
            return [LedgerInvariantBroken(problem=f"it cannot be written: {cause}")]
        results: dict[int, Result] = {}
        for position in positions_in_order(operations):
            results[position] = self.commit([operations[position]])[0]
        return [results[position] for position in range(len(operations))]

    def _transact(self, connection: sqlite3.Connection, operations: Sequence[WriteOperation]) -> list[Result]:
        results: list[Result] = [None] * len(operations)
        self._check_references(connection, operations)
        connection.execute("BEGIN IMMEDIATE")
        to_decide, set_ups = self._sort_out(connection, operations, results)
        books = Loader(connection, self._open, self._request_filter).load([operation for _, operation in to_decide])
        before = Before.of(books)
        ledger = Ledger(books)
        for position, operation in to_decide:
            try:
                results[position] = self._decide(ledger, operation)
            except MetergateError as refusal:
                results[position] = refusal
        expired_microcredits = _expired_microcredits(books)
        save(connection, books, before)
        if self._request_filter is not None:  # before they are durable: it must never lack one that is
            self._request_filter.add(map(request_key, books.charges.added.values()))
        self._run(connection, set_ups, results)
        self._beat_if_due(connection)
        self._commit(connection)
        self._expired_microcredits += expired_microcredits
        self._open.keep(books)
        self._remove_traces(connection, [set_up for _, set_up in set_ups])
        return results

    def _sort_out(
        self, connection: sqlite3.Connection, operations: Sequence[WriteOperation], results: list[Result]
    ) -> tuple[list[tuple[int, Operation]], list[tuple[int, SetUp]]]:
        """What is to be decided, in order, and what is written beside it; what is refused at once goes to results."""
        to_decide: list[tuple[int, Operation]] = []
        set_ups: list[tuple[int, SetUp]] = []
        forgotten = self._read_forgotten(connection)
        for position in positions_in_order(operations):
            operation = operations[position]
            if isinstance(operation, SetUp):
                set_ups.append((position, operation))
                continue
            try:
                check_ids_of(operation)
                if forgotten and subscriber_of(operation) in forgotten:
                    raise ErasureUnfinished(subscriber_id=subscriber_of(operation))
            except MetergateError as refusal:
                results[position] = refusal
            else:
                to_decide.append((position, operation))
        return to_decide, set_ups

    def _run(self, connection: sqlite3.Connection, set_ups: Sequence[tuple[int, SetUp]], results: list[Result]) -> None:
        if set_ups:  # nothing else begins to forget anybody, or ends it
            self._forgotten = None
        for position, set_up in set_ups:
            try:
                results[position] = set_up.run(connection)
            except MetergateError as refusal:
                results[position] = refusal

    def _read_forgotten(self, connection: sqlite3.Connection) -> frozenset[str]:
        """What everybody who is being forgotten is called, and was."""
        if self._forgotten is None:
            self._forgotten = frozenset(
                name for renamed in unfinished(connection) for name in (renamed.old, renamed.new)
            )
        return self._forgotten

    def _covered_captures(self, operations: Sequence[WriteOperation]) -> list[Capture] | None:
        """The operations, if all of them are captures that open reservations of this owner cover; else None."""
        captures: list[Capture] = []
        for operation in operations:
            if type(operation) is not Capture:
                return None
            reservation = self._open.reservations.get(operation.reservation_id)
            if reservation is None or not is_covered(reservation, operation):
                return None
            captures.append(operation)
        return captures

    def _transact_captures(self, connection: sqlite3.Connection, captures: Sequence[Capture]) -> list[Result]:
        """What ``_transact`` does, for captures that read and change no other row than their reservations'."""
        results: list[Result] = []
        rows: dict[str, Reservation] = {}
        for capture in captures:
            reservation_id = capture.reservation_id
            before = rows.get(reservation_id) or self._open.reservations[reservation_id]
            try:
                after = rows[reservation_id] = debited(before, capture, before.reserved_microcredits)
                results.append(answer(CaptureStatus.OPEN, after))
            except MetergateError as refusal:
                results.append(refusal)
        connection.execute("BEGIN IMMEDIATE")
        save_captured(connection, rows.values())
        self._beat_if_due(connection)
        self._commit(connection)
        self._open.keep_captured(rows)
        self._remove_traces(connection, ())
        return results

    def _check_references(self, connection: sqlite3.Connection, operations: Sequence[WriteOperation]) -> None:
        """Unless a wallet is erased: to see that nothing refers to it, SQLite would read every reservation."""
        checks = not any(map(_leaves_traces, operations))
        if checks is not self._checks_references:
            connection.execute(f"PRAGMA foreign_keys = {'ON' if checks else 'OFF'}")
            self._checks_references = checks

    def _commit(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")
        if self._identity is None or not self._identity.is_intact():
            raise FilesLost(f"{self._path}, its WAL or its lock was deleted or replaced")

    def _remove_traces(self, connection: sqlite3.Connection, set_ups: Sequence[SetUp]) -> None:
        """Leave nothing of what was erased. While a reader needs the WAL it stays, and is emptied a second later."""
        if any(set_up.leaves_traces for set_up in set_ups):
            self._is_written_anew = compact_if_small(connection)
            self._is_wal_clean, self._wal_cleaned_time_us = False, 0
        now_us = self._clock.now_us()
        if self._is_wal_clean or abs(now_us - self._wal_cleaned_time_us) < WAL_CLEANED_AGAIN_US:
            return
        self._wal_cleaned_time_us = now_us
        connection.execute("PRAGMA busy_timeout = 0")  # captures must not wait for a reader
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1_000)}")
        self._is_wal_clean = not is_busy
        if self._is_wal_clean and self._is_written_anew:
            connection.execute(COPIES_ARE_GONE)
            self._is_written_anew = False

    def _see_to_erasures(self) -> None:
        """Tell of those that a crash interrupted, and remove what those left that were done before it."""
        if self._connection is None:  # recovery failed on it
            return
        try:
            interrupted = len(unfinished(self._connection))
            if interrupted:  # whom, the log must not say
                logger.warning(
                    "%d erasures of subscribers in %s are unfinished: run `metergate subscriber erase` again",
                    interrupted,
                    self._path,
                )
            if self._connection.execute(COPIES_ARE_LEFT).fetchone() is not None:
                self._is_written_anew = compact_if_small(self._connection)
                self._is_wal_clean, self._wal_cleaned_time_us = False, 0
                self._remove_traces(self._connection, ())
        except sqlite3.Error as exc:
            self._fail(exc)
            raise StoreUnavailable from exc

    def _decide(self, ledger: Ledger, operation: Operation) -> Outcome:
        # The caller read its owner before the store was opened again: that epoch's reservations would never be closed.
        if isinstance(operation, Reserve) and operation.owner != self._owner:
            raise StoreUnavailable
        return ledger.carry_out(operation)

    def beat(self, connection: sqlite3.Connection) -> None:
        """Write within a transaction that this owner lives."""
        self._heartbeat_time_us = self._clock.now_us()
        connection.execute(
            "UPDATE owners SET heartbeat_time_us = ? WHERE owner_id = ? AND epoch = ?",
            (self._heartbeat_time_us, self._owner.owner_id, self._owner.epoch),
        )

    def _beat_if_due(self, connection: sqlite3.Connection) -> None:
        if abs(self._clock.now_us() - self._heartbeat_time_us) >= HEARTBEAT_US:
            self.beat(connection)

    def take_expired(self) -> int:
        """Microcredits that became breakage since this was asked last. Not while a batch is committed."""
        expired, self._expired_microcredits = self._expired_microcredits, 0
        return expired

    def _rescue(self) -> None:
        """Put what the WAL holds, acknowledged, into the database that this connection has open, and empty the WAL.

        If the WAL lost its name, it would be lost with this connection. If the database did, the WAL must not lie
        beside another one, which the next program to open it would destroy with it.
        """
        assert self._connection is not None
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as exc:
            logger.error("what the WAL of %s held could not be saved: %s", self._path, exc)

    def _fail(self, exc: Exception) -> None:
        logger.error("the ledger %s failed: %s", self._path, exc)
        self.close()


def _leaves_traces(operation: WriteOperation) -> bool:
    return isinstance(operation, SetUp) and operation.leaves_traces


def _expired_microcredits(books: Books) -> int:
    return sum(row.amount_microcredits for row in books.transfers if row.kind is TransferKind.EXPIRY)

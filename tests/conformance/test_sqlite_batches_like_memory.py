"""Whatever comes in one batch, SQLite decides and stores it as the ledger in memory does, and remembers what it stored.

Batches of several subscribers, in any order and at times that go back; commits that fail before or after they were
durable, new processes, subscribers that are forgotten in pieces. METERGATE_BATCH_SEEDS=5000 tries as many.
"""

import os
import random
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from ledger_rows import (
    CARD,
    DAY_SECONDS,
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_refund,
    a_reserve,
    a_reversal,
    a_settle,
    a_state_change,
    a_wallet,
    an_adjustment,
    differences,
    tokens,
)
from request_filters import unknown

from metergate.core.batches import Operation, check_ids_of, subscriber_of
from metergate.core.books import LOST_TO, Books, Table
from metergate.core.changes import changed
from metergate.core.errors import ErasureUnfinished, MetergateError, StoreUnavailable
from metergate.core.ledger import Ledger
from metergate.core.operations import EraseSubscriber, Expire, Recover, Reserve, RevokeAuthorization
from metergate.core.reservation import Estimate, Owner, Reservation, ReservationState
from metergate.core.rows import GrantSource, WalletState
from metergate.stores.sqlite import SqliteLedgerReader, codec, derived, erasing, setting_up, upkeep
from metergate.stores.sqlite.connection import FileLock
from metergate.stores.sqlite.write_operations import SetUp, positions_in_order
from metergate.stores.sqlite.writer import SqliteWriter

SEEDS = int(os.environ.get("METERGATE_BATCH_SEEDS", "40"))
FIRST_SEED = int(os.environ.get("METERGATE_FIRST_BATCH_SEED", "0"))
BATCHES = 30
OPERATIONS_MAX = 6

SUBSCRIBERS = ("alice", "bob")
ALL = 1_000

Rows = dict[str, list[Any]]


class Memory:
    """The ledger in memory, told the same."""

    def __init__(self) -> None:
        self.books = Books()
        self.ledger = Ledger(self.books)
        self.unfinished: set[str] = set()

    def batch(self, operations: list[Operation], owner: Owner) -> list[Any]:
        outcomes: dict[int, Any] = {}
        for position in positions_in_order(operations):
            try:
                outcomes[position] = self._one(operations[position], owner)
            except MetergateError as refusal:
                outcomes[position] = refusal
        return [outcomes[position] for position in range(len(operations))]

    def _one(self, operation: Operation, owner: Owner) -> Any:
        check_ids_of(operation)
        if subscriber_of(operation) in self.unfinished:
            raise ErasureUnfinished(subscriber_id=subscriber_of(operation))
        if isinstance(operation, Reserve) and operation.owner != owner:
            raise StoreUnavailable
        return self.ledger.carry_out(operation)

    def recover(self, owner: Owner, ids: Iterator[str], now_us: int) -> None:
        abandoned = [row for row in self.books.reservations.rows.values() if row.state is ReservationState.ACTIVE]
        for row in sorted(abandoned, key=lambda row: (row.subscriber_id, row.authorization_id, row.request_id)):
            operation = Recover(
                reservation_id=row.reservation_id,
                subscriber_id=row.subscriber_id,
                charge_id=next(ids),
                survivor=owner,
                now_us=now_us,
            )
            self.batch([operation], owner)

    def forget(self, subscriber_id: str) -> None:
        """Books without the subscriber."""
        before, self.books = self.books, Books()
        self.ledger = Ledger(self.books)
        tables: tuple[tuple[Table[Any, Any], Callable[[Any], None]], ...] = (
            (before.wallets, lambda row: self.books.wallets.rows.update({row.subscriber_id: row})),
            (before.authorizations, lambda row: self.books.authorizations.rows.update({row.authorization_id: row})),
            (before.grants, self.books.load_grant),
            (before.reservations, self.books.load_reservation),
            (before.charges, self.books.load_charge),
            (before.corrections, self.books.load_correction),
        )
        for table, load in tables:
            for row in table.rows.values():
                if row.subscriber_id != subscriber_id:
                    load(row)
        self.books.transfers = [row for row in before.transfers if row.subscriber_id != subscriber_id]
        for posted in self.books.transfers:
            if posted.credit_account in LOST_TO:
                self.books.load_lost((posted.subscriber_id, posted.grant_id), posted.amount_microcredits)

    def rows(self) -> Rows:
        books = self.books
        tables: dict[str, Table[Any, Any]] = {
            "wallets": books.wallets,
            "grants": books.grants,
            "authorizations": books.authorizations,
            "reservations": books.reservations,
            "charges": books.charges,
            "corrections": books.corrections,
        }
        found = {name: list(table.rows.values()) for name, table in tables.items()}
        return _sorted({**found, "transfers": books.transfers})


READS: dict[str, tuple[str, Callable[[tuple[Any, ...]], Any]]] = {
    "wallets": (codec.WALLET, codec.wallet),
    "grants": (derived.GRANT_READ, codec.grant),
    "authorizations": (derived.AUTHORIZATION_READ, codec.authorization),
    "reservations": (codec.RESERVATION, codec.reservation),
    "charges": (codec.CHARGE, codec.charge),
    "corrections": (codec.CORRECTION, codec.correction),
    "transfers": (codec.TRANSFER, codec.transfer),
}


def _sorted(rows: Rows) -> Rows:
    """In one order; an estimate is for a crash, and is not written with what closes a reservation."""
    rows["reservations"] = [
        row if row.state is ReservationState.ACTIVE else changed(row, estimate=None) for row in rows["reservations"]
    ]
    return {name: sorted(values, key=repr) for name, values in rows.items()}


def stored_rows(path: Path, hidden: Iterable[str]) -> Rows:
    """What the file has, of all but these subscribers."""
    with closing(sqlite3.connect(path)) as raw:
        found = {
            name: [decode(columns) for columns in raw.execute(f"SELECT {columns} FROM {name}")]
            for name, (columns, decode) in READS.items()
        }
    names = set(hidden)
    return _sorted({name: [row for row in rows if row.subscriber_id not in names] for name, rows in found.items()})


class World:
    """A file with its writer, the ledger in memory, and chance."""

    def __init__(self, path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.clock = FakeClock(NOW_US)
        self.memory = Memory()
        self.pseudonyms: list[str] = []
        self._numbers = count(1)
        self._ids, self._memory_ids = count(1), count(1)
        monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(self._ids)))
        self._lock = FileLock(path)
        self.writer = SqliteWriter(path, clock=self.clock, owner_id="gateway-1", request_filter_mebibytes=1)
        self.writer.open(create=True)
        assert self.writer.request_filter is not None
        self.writer.request_filter.is_whole = True  # of a ledger without charges
        self._reservations: list[str] = []
        self._charges: list[str] = []

    def close(self) -> None:
        self.writer.close()
        self._lock.release()

    # --- what comes -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A batch, or something else that happens."""
        kind = self.chance.choices(
            ("batch", "fails before", "fails after", "restart", "clock", "prune", "erase"),
            (80, 3, 3, 3, 12, 3, 2),
        )[0]
        if kind == "clock":
            self.clock.advance(int(self.chance.choice([-1.0, -1 / 24, 1 / 24, 1.0, 1.0, 2.0]) * DAY_US))
        elif kind == "restart":
            self.writer.close()
            self.reopen()
        elif kind == "prune":
            self.prune()
        elif kind == "erase":
            self.erase()
        else:
            self.batch(kind)

    def batch(self, kind: str) -> None:
        operations = [self.operation() for _ in range(self.chance.randint(1, OPERATIONS_MAX))]
        owner = self.writer.owner
        if kind == "batch":
            answers = self.writer.commit(operations)
            expected = self.memory.batch(operations, owner)
            for operation, answer, wanted in zip(operations, answers, expected, strict=True):
                assert _plain(answer) == _plain(wanted), operation
            return
        self._fail_commit(durable=kind == "fails after")
        with pytest.raises(StoreUnavailable):
            self.writer.commit(operations)
        if kind == "fails after":
            self.memory.batch(operations, owner)
        self.reopen()

    def _fail_commit(self, *, durable: bool) -> None:
        def fail(connection: sqlite3.Connection) -> None:
            del self.writer._commit
            if durable:
                connection.execute("COMMIT")
            raise sqlite3.OperationalError("disk I/O error")

        self.writer._commit = fail  # type: ignore[method-assign]

    def reopen(self) -> None:
        self.writer.open(create=False)
        self.memory.recover(self.writer.owner, (uuid.UUID(int=n).hex for n in self._memory_ids), self.clock.now_us())
        assert not self.writer._open.reservations

    def prune(self) -> None:
        before_us = self.clock.now_us() - self.chance.choice([0, DAY_US])
        assert not isinstance(self.writer.commit([SetUp(lambda raw: upkeep.prune(raw, before_us, ALL))])[0], Exception)
        rows = self.memory.books.reservations.rows
        for reservation_id in [
            row.reservation_id
            for row in rows.values()
            if row.close_time_us is not None and row.close_time_us < before_us
        ]:
            del rows[reservation_id]
        self._reservations = [name for name in self._reservations if name in rows]

    def erase(self) -> None:
        """Bob, or some pieces of it; then he may come back."""
        pseudonym = f"erased-{len(self.pseudonyms)}"
        operation = EraseSubscriber(
            subscriber_id="bob", pseudonym=pseudonym, reason="r", actor="a", now_us=self.clock.now_us()
        )
        pieces = self.chance.choice([1, 3, ALL])
        for _ in range(pieces):
            (more,) = self.writer.commit([SetUp(lambda raw: erasing.erase_piece(raw, operation))])
            if isinstance(more, MetergateError):
                return  # he is not there, or something of his is running
            if not self.memory.unfinished:
                self.pseudonyms.append(pseudonym)
                self.memory.unfinished |= {"bob", pseudonym}
                rows = self.memory.books.reservations.rows.values()
                of_bob = {row.reservation_id for row in rows if row.subscriber_id == "bob"}
                self._reservations = [name for name in self._reservations if name not in of_bob]
            if not more:
                end = SetUp(lambda raw: erasing.end_erasure(raw, "bob"), leaves_traces=True)
                assert not isinstance(self.writer.commit([end])[0], Exception)
                self.memory.unfinished.clear()
                self.memory.forget("bob")
                return

    # --- operations -------------------------------------------------------------------------------------------------

    def operation(self) -> Operation:
        name = self.chance.choices(
            ("set up", "consent", "grant", "reserve", "capture", "settle", "correct", "expire", "revoke"),
            (1, 1, 4, 12, 10, 10, 6, 2, 0.4),
        )[0]
        subscriber = self.chance.choice(SUBSCRIBERS)
        now = {"now_us": self.clock.now_us() + self.chance.choice([0, 0, 0, -3_600_000_000, 3_600_000_000, DAY_US])}
        authorization = f"{subscriber}-{self.chance.randint(1, 2)}"
        match name:
            case "set up":
                return a_wallet(subscriber)
            case "consent":
                return a_consent(authorization, subscriber, cap_microcredits=self.chance.choice([None, 400]))
            case "grant":
                return self._grant(subscriber, now["now_us"])
            case "revoke" if subscriber not in self.memory.unfinished:  # whose erasure revoked them
                return RevokeAuthorization(authorization_id=authorization, **now)
            case "correct":
                return self._correction({"subscriber_id": subscriber} | now)
            case "reserve" | "capture" | "settle":
                return self._spend(name, subscriber, authorization, now)
        return Expire(subscriber_id=subscriber, **now)

    def _grant(self, subscriber: str, now_us: int) -> Operation:
        expires = self.chance.choice([None, NOW_US + DAY_US, NOW_US + 2 * DAY_US, now_us + DAY_US])
        rule: dict[str, Any] = {}
        if expires is not None and self.chance.random() < 0.5:
            rule = {"rollover_microcredits_max": self.chance.choice([60, 200]), "rollover_seconds": DAY_SECONDS}
        return a_grant(
            f"g{self.chance.randint(1, 6)}",
            self.chance.choice([0, 50, 200, 200, 400]),
            subscriber,
            expire_time_us=expires,
            effective_time_us=self.chance.choice([0, 0, NOW_US + DAY_US]),
            priority=self.chance.choice([1, 10, 10]),
            source=self.chance.choice(list(GrantSource)),
            create_time_us=now_us,
            **rule,
        )

    def _spend(self, name: str, subscriber: str, authorization: str, now: dict[str, int]) -> Operation:
        owner = self.writer.owner if self.chance.random() < 0.97 else Owner(owner_id="dead", epoch=1)
        mine: dict[str, Any] = {"subscriber_id": subscriber, "owner": owner} | now
        if name == "reserve" or not self._reservations:
            wanted = self.chance.choice([10, 60, 150, 400])
            if self._reservations and self.chance.random() < 0.1:
                reservation_id = self.chance.choice(self._reservations)
            else:
                self._reservations.append(reservation_id := f"res-{next(self._numbers)}")
            request_id = f"q{self.chance.randint(1, 8)}"
            return a_reserve(
                reservation_id,
                authorization_id=authorization,
                request_id=request_id,
                content_hash=self.chance.choice([b"content", b"content", b"content", b"other"]),
                wanted_microcredits=wanted,
                limit_microcredits=self.chance.choice([300, 10_000]),
                **mine,
            )
        reservation_id = self.chance.choice(self._reservations[-4:])
        known = self.memory.books.reservations.get(reservation_id)
        if isinstance(known, Reservation) and self.chance.random() < 0.95:
            mine["subscriber_id"] = known.subscriber_id
        delivers = int(reservation_id.removeprefix("res-")) % 2  # what delivered is never released
        if name == "capture":
            target = self.chance.randint(0, 250)
            estimated = self.chance.choice([None, None, self.chance.randint(0, target)])
            return a_capture(
                target,
                reservation_id,
                wanted_microcredits=self.chance.choice([0, target, target + 90]),
                delivered_microcredits=self.chance.randint(0, 9) * delivers,
                estimate=None if estimated is None else Estimate(usage=tokens(estimated), microcredits=estimated),
                **mine,
            )
        charge_id = f"charge-{next(self._numbers)}"
        self._charges.append(charge_id)
        charged = self.chance.choice([0, 9, 40, 120] if delivers else [None, None, 9, 40, 120])
        return a_settle(
            charged, reservation_id, charge_id=charge_id, captured=self.chance.choice([0, charged or 0, 150]), **mine
        )

    def _correction(self, mine: dict[str, Any]) -> Operation:
        correction_id = f"c{self.chance.randint(1, 30)}"
        match self.chance.choice(["refund", "refund", "refund", "adjust", "adjust", "reverse", "state"]):
            case "refund":
                charges = [
                    row.charge_id
                    for row in self.memory.books.charges.rows.values()
                    if row.subscriber_id == mine["subscriber_id"]
                ]
                charge_id = self.chance.choice(charges or ["unknown"])
                return a_refund(self.chance.choice([1, 5, 20, 60]), charge_id, correction_id, **mine)
            case "adjust":
                seconds = self.chance.choice([None, DAY_SECONDS])
                return an_adjustment(
                    self.chance.choice([-60, -5, 0, 5, 90]), correction_id, grant_seconds=seconds, **mine
                )
            case "reverse":
                return a_reversal(f"g{self.chance.randint(1, 6)}", correction_id, **mine)
        state = self.chance.choice([WalletState.ACTIVE, WalletState.ACTIVE, WalletState.SUSPENDED])
        return a_state_change(correction_id, state, **mine)

    # --- what must be -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The file has what the ledger in memory has; the writer remembers that, and every request that was charged."""
        hidden = {"bob"} if self.memory.unfinished else set()
        expected = self.memory.rows()
        expected = {name: [row for row in rows if row.subscriber_id not in hidden] for name, rows in expected.items()}
        found = stored_rows(self.path, hidden | set(self.pseudonyms))
        for name, rows in expected.items():
            assert found[name] == rows, name
        self._check_memory(found)
        with closing(sqlite3.connect(self.path)) as raw:
            assert self.writer.request_filter is not None
            assert unknown(raw, self.writer.request_filter) == []

    def _check_memory(self, found: Rows) -> None:
        kept = self.writer._open
        active = {row.reservation_id: row for row in found["reservations"] if row.state is ReservationState.ACTIVE}
        assert kept.reservations == active
        grants = {(row.subscriber_id, row.grant_id): row for row in found["grants"]}
        wallets = {row.subscriber_id: row for row in found["wallets"]}
        authorizations = {row.authorization_id: row for row in found["authorizations"]}
        assert {row.subscriber_id for row in active.values()} >= set(kept.payers)
        for subscriber_id, payer in kept.payers.items():
            assert payer.wallet == wallets[subscriber_id]
            with_credit = {
                key[1] for key, row in grants.items() if key[0] == subscriber_id and row.remaining_microcredits
            }
            assert with_credit <= set(payer.grants)
            for grant_id, grant in payer.grants.items():
                assert grant == grants[(subscriber_id, grant_id)]
            for authorization_id, authorization in payer.authorizations.items():
                assert authorization == authorizations[authorization_id]
            assert payer.reservation_ids == {
                row.reservation_id for row in active.values() if row.subscriber_id == subscriber_id
            }


def _plain(outcome: Any) -> Any:
    return (type(outcome), str(outcome)) if isinstance(outcome, MetergateError) else outcome


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, 10))
@pytest.mark.timeout(600)
async def test_any_batches_are_decided_stored_and_remembered_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(erasing, "PIECE_ROWS", 2)
    for seed in range(first, min(first + 10, FIRST_SEED + SEEDS)):
        path = tmp_path / f"{seed}.db"
        world = World(path, seed, monkeypatch)
        try:
            world.writer.commit([SetUp(lambda raw: setting_up.add_rate_cards(raw, (CARD,)))])
            set_up: list[Operation] = []
            for subscriber in SUBSCRIBERS:
                set_up += [a_wallet(subscriber), a_grant("g0", 300, subscriber)]
                set_up += [a_consent(f"{subscriber}-{number}", subscriber) for number in (1, 2)]
            world.memory.batch(set_up, world.writer.owner)
            world.writer.commit(set_up)
            for step in range(BATCHES):
                try:
                    world.step()
                    world.check()
                except BaseException as exc:
                    exc.add_note(f"seed {seed}, step {step}")
                    raise
        finally:
            world.close()
        reader = await SqliteLedgerReader.open_read_only(path)
        assert await differences(reader) == [], seed
        await reader.close()

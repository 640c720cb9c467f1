"""Durable captures a second: through the store, from many streams at once, and the same rows by ``executemany``."""

import asyncio
import gc
import itertools
import sqlite3
import time
from pathlib import Path

import uuid_utils

from bench.costs import Progress
from bench.results import Captures
from metergate.clock import SystemClock
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber, Capture, Reserve, Reserved
from metergate.core.reservation import Reservation
from metergate.core.rows import Authorization, Channel, Grant, GrantSource, Wallet, WalletState
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.stores.sqlite import SqliteLedgerStore, codec
from metergate.stores.sqlite.saving import CAPTURE_RESERVATION

STREAMS = 512  # a batch is at most that many: each stream has one capture in flight
RESERVED_MICROCREDITS = 1_000_000  # more than all captures of a stream


async def measure_captures(folder: Path, rounds: int, captures_a_stream: int, progress: Progress) -> Captures:
    """Rounds of both in turns, on two files in the same folder: a memory file system would hide what a commit costs."""
    progress(f"captures, {STREAMS} streams: opening")
    store = await _Streams.open(folder / "captures.db")
    raw = copy_ledger(folder / "captures.db", folder / "raw.db")
    gc.freeze()  # as a gateway does once it serves
    targets = itertools.count(1)
    rates, cpu_us, raw_rates = [], [], []
    try:
        for turn in range(rounds):
            progress(f"captures, {STREAMS} streams, round {turn + 1} of {rounds}")
            batch = [next(targets) for _ in range(captures_a_stream)]
            count = STREAMS * captures_a_stream
            began, cpu = time.perf_counter(), time.process_time()
            await store.capture(batch)
            rates.append(count / (time.perf_counter() - began))
            cpu_us.append((time.process_time() - cpu) / count * 1e6)
            raw_rates.append(count / _raw_seconds(raw, store.reservations, batch))
    finally:
        raw.close()
        await store.close()
    return Captures(batch=STREAMS, store_a_second=rates, raw_a_second=raw_rates, store_cpu_us=cpu_us)


class _Streams:
    """A store, and a reservation for each stream; each of its own subscriber."""

    def __init__(self, store: SqliteLedgerStore, reservations: list[Reservation]) -> None:
        self._store = store
        self.reservations = reservations
        self.close = store.close

    @classmethod
    async def open(cls, path: Path) -> "_Streams":
        clock = SystemClock()
        store = await SqliteLedgerStore.open(path, clock=clock, owner_id="bench", create=True)
        names = [f"s{number}" for number in range(STREAMS)]
        now_us = clock.now_us()
        await asyncio.gather(*(open_wallet(store, name, now_us, RESERVED_MICROCREDITS) for name in names))
        return cls(
            store, await asyncio.gather(*(reserve(store, name, now_us, RESERVED_MICROCREDITS) for name in names))
        )

    async def capture(self, targets: list[int]) -> None:
        """Each stream captures up to each target, one after the other."""
        await asyncio.gather(*(self._capture(reservation, targets) for reservation in self.reservations))

    async def _capture(self, reservation: Reservation, targets: list[int]) -> None:
        for target in targets:
            await self._store.capture(
                Capture(
                    reservation_id=reservation.reservation_id,
                    subscriber_id=reservation.subscriber_id,
                    owner=reservation.owner,
                    target_microcredits=target,
                    target_usage=usage(target),
                    wanted_microcredits=target,
                    delivered_microcredits=target - 1,
                    now_us=reservation.create_time_us,
                )
            )


async def open_wallet(store: SqliteLedgerStore, name: str, now_us: int, microcredits: int) -> None:
    """A subscriber with an authorization of the same name and one grant of so much."""
    await store.add_subscriber(
        AddSubscriber(wallet=Wallet(subscriber_id=name, state=WalletState.ACTIVE, sequence=0, create_time_us=now_us))
    )
    await store.add_authorization(
        AddAuthorization(
            authorization=Authorization(
                authorization_id=name,
                subscriber_id=name,
                app_id="bench",
                channel=Channel.APP,
                cap_microcredits=None,
                allowed_models=(),
                charged_microcredits=0,
                reserved_microcredits=0,
                create_time_us=now_us,
                revoke_time_us=None,
            )
        )
    )
    await store.add_grant(
        AddGrant(
            grant=Grant(
                grant_id="bench",
                subscriber_id=name,
                source=GrantSource.TOP_UP,
                priority=10,
                amount_microcredits=microcredits,
                remaining_microcredits=microcredits,
                effective_time_us=0,
                expire_time_us=None,
                create_time_us=now_us,
            )
        )
    )


async def reserve(store: SqliteLedgerStore, name: str, now_us: int, microcredits: int) -> Reservation:
    """Credit of that wallet set aside, under ids as the gateway makes them: they grow with time."""
    identity = uuid_utils.uuid7().hex
    reserved = await store.reserve(
        Reserve(
            reservation_id=identity,
            subscriber_id=name,
            authorization_id=name,
            request_id=identity,
            content_hash=b"",
            owner=store.owner,
            model_id="bench",
            provider_id="bench",
            counting_source=CountingSource.TOKENIZER,
            rate_card_id="bench",
            minimum_microcredits=1,
            wanted_microcredits=microcredits,
            limit_microcredits=microcredits,
            capture_microcredits=0,
            capture_usage=Usage(),
            now_us=now_us,
        )
    )
    assert isinstance(reserved, Reserved)
    return reserved.reservation


def usage(tokens: int) -> Usage:
    """Of a prompt and so much of an answer."""
    return Usage.of({TokenClass.PROMPT: 20, TokenClass.COMPLETION: tokens})


def copy_ledger(source: Path, target: Path) -> sqlite3.Connection:
    """The same ledger in another file, opened as the store opens it."""
    connection = sqlite3.connect(target, isolation_level=None)
    original = sqlite3.connect(source)
    original.backup(connection)
    original.close()
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _raw_seconds(connection: sqlite3.Connection, reservations: list[Reservation], targets: list[int]) -> float:
    """How long writing the rows of these captures takes; making them is not measured."""
    batches = [
        [(target, codec.usage_columns(usage(target)), target - 1, row.reservation_id) for row in reservations]
        for target in targets
    ]
    began = time.perf_counter()
    for batch in batches:
        connection.execute("BEGIN IMMEDIATE")
        assert connection.executemany(CAPTURE_RESERVATION, batch).rowcount == len(batch)
        connection.execute("COMMIT")
    return time.perf_counter() - began

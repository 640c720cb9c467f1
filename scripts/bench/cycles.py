"""Whole durable requests a second: reserve, one capture, settle; and the same rows by ``executemany``."""

import asyncio
import gc
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uuid_utils

from bench.costs import Progress
from bench.results import Cycles
from bench.store import STREAMS, copy_ledger, open_wallet, reserve, usage
from metergate.clock import SystemClock
from metergate.core.operations import Capture, Settle, Settlement
from metergate.core.reservation import CloseCause, Reservation
from metergate.core.rows import Attempt, FinishReason
from metergate.stores.sqlite import SqliteLedgerStore, codec, derived, saving

WALLET_MICROCREDITS = 1_000_000_000
RESERVED_MICROCREDITS, CHARGED_MICROCREDITS = 5_000, 300


@dataclass(frozen=True, slots=True)
class Timed:
    """How long each step of a round took, in seconds, and the CPU of all."""

    reserves: float
    captures: float
    settles: float
    cpu: float

    @property
    def whole(self) -> float:
        """All three."""
        return self.reserves + self.captures + self.settles


async def measure_cycles(folder: Path, rounds: int, progress: Progress) -> Cycles:
    """Rounds of both in turns, each of one cycle for every stream."""
    path, raw_path = folder / "cycles.db", folder / "raw-cycles.db"
    clock = SystemClock()
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="bench", create=True)
    names = [f"s{number}" for number in range(STREAMS)]
    await asyncio.gather(*(open_wallet(store, name, clock.now_us(), WALLET_MICROCREDITS) for name in names))
    raw = copy_ledger(path, raw_path)
    gc.freeze()  # as a gateway does once it serves
    timed, raw_seconds = [], []
    try:
        for turn in range(rounds):
            progress(f"cycles, {STREAMS} streams, round {turn + 1} of {rounds}")
            timed.append(await run_round(store, names, clock.now_us()))
            raw_seconds.append(_raw_seconds(raw, path))
    finally:
        raw.close()
        await store.close()
    return summary(timed, raw_seconds)


def summary(timed: Sequence[Timed], raw_seconds: Sequence[float]) -> Cycles:
    """As rates."""
    return Cycles(
        batch=STREAMS,
        cycles_a_second=[STREAMS / each.whole for each in timed],
        reserves_a_second=[STREAMS / each.reserves for each in timed],
        captures_a_second=[STREAMS / each.captures for each in timed],
        settles_a_second=[STREAMS / each.settles for each in timed],
        raw_a_second=[STREAMS / seconds for seconds in raw_seconds],
        cpu_us=[each.cpu / STREAMS * 1e6 for each in timed],
    )


async def run_round(store: SqliteLedgerStore, names: Iterable[str], now_us: int) -> Timed:
    """One cycle for each of these wallets: first all reserve, then all capture, then all settle."""
    cpu, times = time.process_time(), [time.perf_counter()]
    rows = await asyncio.gather(*(reserve(store, name, now_us, RESERVED_MICROCREDITS) for name in names))
    times.append(time.perf_counter())
    await asyncio.gather(*(store.capture(_capture(row, now_us)) for row in rows))
    times.append(time.perf_counter())
    await asyncio.gather(*(store.settle(_settle(row, now_us)) for row in rows))
    times.append(time.perf_counter())
    return Timed(times[1] - times[0], times[2] - times[1], times[3] - times[2], time.process_time() - cpu)


def _capture(row: Reservation, now_us: int) -> Capture:
    return Capture(
        reservation_id=row.reservation_id,
        subscriber_id=row.subscriber_id,
        owner=row.owner,
        target_microcredits=CHARGED_MICROCREDITS,
        target_usage=usage(CHARGED_MICROCREDITS),
        wanted_microcredits=CHARGED_MICROCREDITS,
        delivered_microcredits=0,
        now_us=now_us,
    )


def _settle(row: Reservation, now_us: int) -> Settle:
    return Settle(
        reservation_id=row.reservation_id,
        subscriber_id=row.subscriber_id,
        owner=row.owner,
        close_cause=CloseCause.FINISHED,
        settlement=Settlement(
            charge_id=uuid_utils.uuid7().hex,
            charged_microcredits=CHARGED_MICROCREDITS,
            usage_counted=usage(CHARGED_MICROCREDITS),
            usage_reported=None,
            usage_mismatch=False,
            attempts=(Attempt(backend_id="bench", problem="", prompt_tokens=20, milliseconds=40),),
            finish_reason=FinishReason.STOP,
            captured_microcredits=CHARGED_MICROCREDITS,
        ),
        now_us=now_us,
    )


def _raw_seconds(raw: sqlite3.Connection, path: Path) -> float:
    """How long writing the rows of the round that the store wrote last takes, in its three transactions."""
    source = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    newest = f"ORDER BY rowid DESC LIMIT {STREAMS}"
    closed = source.execute(f"SELECT {codec.RESERVATION} FROM reservations {newest}").fetchall()[::-1]
    charges = source.execute(f"SELECT {codec.CHARGE} FROM charges {newest}").fetchall()[::-1]
    spent = f"SELECT -{CHARGED_MICROCREDITS}, amount_microcredits, reverse_time_us, subscriber_id, grant_id FROM grants"
    grants = source.execute(spent).fetchall()
    wallets = source.execute("SELECT sequence, subscriber_id FROM wallets").fetchall()
    consents = source.execute("SELECT charged_microcredits, authorization_id FROM authorizations").fetchall()
    newest_of_each = "FROM transfers JOIN wallets USING (subscriber_id, sequence)"
    transfers = source.execute(f"SELECT {derived.qualified('transfers', codec.TRANSFER)} {newest_of_each}").fetchall()
    source.close()
    columns = [name.strip() for name in codec.RESERVATION.split(",")]
    rows = [dict(zip(columns, row, strict=True)) for row in closed]
    opened = [tuple((row | {"state": "ACTIVE", "close_cause": None, "close_time_us": None}).values()) for row in rows]
    watermark = ("captured_microcredits", "captured_usage", "delivered_microcredits")
    end = ("reserved_microcredits", "allocations", "state", "close_cause", "close_time_us")
    captured = [(*(row[name] for name in watermark), row["reservation_id"]) for row in rows]
    ended = [(*(row[name] for name in (*watermark, *end)), row["reservation_id"]) for row in rows]
    began = time.perf_counter()
    for batch in (
        ((saving.INSERT_RESERVATION, opened),),
        ((saving.CAPTURE_RESERVATION, captured),),
        (
            (saving.UPDATE_WALLET, wallets),
            (saving.UPDATE_GRANT, grants),
            (saving.UPDATE_AUTHORIZATION, consents),
            (saving.CLOSE_RESERVATION, ended),
            (saving.INSERT_CHARGE, charges),
            (saving.INSERT_TRANSFER, transfers),
        ),
    ):
        raw.execute("BEGIN IMMEDIATE")
        for sql, values in batch:
            assert raw.executemany(sql, values).rowcount == STREAMS
        raw.execute("COMMIT")
    return time.perf_counter() - began

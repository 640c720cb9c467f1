"""A subscriber with very many charges is forgotten while another one's stream is captured: how long that one waits."""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path

from bench.store import RESERVED_MICROCREDITS, open_wallet
from ledger_rows import a_capture, a_reserve, a_settle, differences

from metergate.clock import SystemClock
from metergate.core.operations import EraseSubscriber
from metergate.stores.sqlite import SqliteLedgerStore
from soak.generating import generate
from soak.parts import Figures, Step

# How long captures are looked at before, so that there is something to compare with.
BEFORE_SECONDS = 2.0

# Between a delivery and the next capture of its stream: some 200 tokens a second.
PAUSE_SECONDS = 0.005

# A wait that an app would see as a stall. Without a piece's bound it was half a second for 10,000 charges.
WAIT_SECONDS_MAX = 0.25


def erasing(thousands: int, step: Step) -> Figures:
    """Make a ledger in which one wallet has so many thousand charges, forget it beside a stream, and verify."""
    with tempfile.TemporaryDirectory() as name:
        ledger, charges = Path(name) / "ledger.db", thousands * 1_000
        asyncio.run(_create(ledger))
        generate(ledger, wallets=1, charges=charges, made=lambda count: _steps(step, count))
        before, during, seconds, leaves_copies = asyncio.run(_measure(ledger))
        figures = {
            "charges:": f"{charges:,}",
            "file, MB:": f"{ledger.stat().st_size / 1e6:,.0f}",
            "forgotten in, s:": f"{seconds:,.1f}",
            "waits of captures before, ms, median, 99%, longest:": _waits(before),
            "meanwhile:": _waits(during),
            "captures meanwhile:": f"{len(during):,}",
            "leaves copies:": f"{leaves_copies}",
        }
    assert max(during) <= WAIT_SECONDS_MAX, figures
    return figures


def _steps(step: Step, charges: int) -> None:
    for _ in range(charges // 1_000):
        step()


async def _create(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="maker", create=True)
    await store.close()


async def _measure(ledger: Path) -> tuple[list[float], list[float], float, bool]:
    clock = SystemClock()
    store = await SqliteLedgerStore.open(ledger, clock=clock, owner_id="soak", create=False)
    try:
        await open_wallet(store, "bob", clock.now_us(), RESERVED_MICROCREDITS)
        of_bob = {"subscriber_id": "bob", "owner": store.owner, "now_us": clock.now_us()}
        card = {"rate_card_id": "bench", "model_id": "bench"}
        await store.reserve(
            a_reserve("stream", authorization_id="bob", wanted_microcredits=RESERVED_MICROCREDITS, **of_bob, **card)
        )
        waits: list[float] = []
        streaming = asyncio.create_task(_stream(store, of_bob, waits))
        await asyncio.sleep(BEFORE_SECONDS)
        before = waits.copy()
        waits.clear()
        began = time.perf_counter()
        erasure = await store.erase_subscriber(
            EraseSubscriber(
                subscriber_id="s0000000", pseudonym="erased-1", reason="soak", actor="soak", now_us=clock.now_us()
            )
        )
        seconds = time.perf_counter() - began
        during = waits.copy()
        streaming.cancel()
        await asyncio.wait([streaming])
        await store.settle(a_settle(9, "stream", **of_bob))
        found = await differences(store)
        assert found == [], found[:3]
        return before, during, seconds, erasure.leaves_copies
    finally:
        await store.close()


async def _stream(store: SqliteLedgerStore, of_bob: dict[str, object], waits: list[float]) -> None:
    for target in itertools.count(10):
        began = time.perf_counter()
        await store.capture(a_capture(target, "stream", delivered_microcredits=target - 1, **of_bob))
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_SECONDS)


def _waits(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    ranks = (len(ordered) // 2, len(ordered) * 99 // 100, len(ordered) - 1)
    return ", ".join(f"{ordered[rank] * 1_000:.1f}" for rank in ranks)

"""The store on a ledger of ten million charges beside a new one, and the memory of `verify` on it."""

import asyncio
import gc
import os
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

from bench.cycles import Timed, run_round, summary
from bench.store import STREAMS, open_wallet
from gateway_process import openai_backend, write_config

from metergate.clock import SystemClock
from metergate.config.schema import Store
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.stores.sqlite.filter_keeping import UNCOVERED_CHARGES_MIN
from soak.generating import GRANT_MICROCREDITS, generate
from soak.parts import Figures, Step
from soak.watching import watch

ROUNDS = 30
SEED = 20261124
WALLETS_SHARE = 10  # charges a wallet

# Of an empty file's rate.
SHARE_MIN = 0.8

# The first start on ten million charges reads all of them, at a quarter of a processor's time.
FILTER_SECONDS_MAX = 3_600

# A later one, what was stored and the charges since then.
FILTER_READ_SECONDS_MAX = 60

# Whether all of it is, and how large it is.
STORED = "SELECT coalesce(count(*) = max(chunks), 0), coalesce(sum(length(bits)), 0) FROM request_filter"

# Memory of `verify` that does not depend on the size of the ledger: Python and its libraries, and a page of rows.
VERIFY_MEGABYTES_MAX = 300


def scale(thousands: int, step: Step) -> Figures:
    """Make a ledger of so many thousand charges, run rounds of cycles on it and on an empty one, and verify it."""
    with tempfile.TemporaryDirectory() as name:
        folder, charges = Path(name), thousands * 1_000
        wallets = charges // WALLETS_SHARE
        asyncio.run(_create(folder / "ledger.db"))
        began = time.perf_counter()
        generate(folder / "ledger.db", wallets=wallets, charges=charges, made=lambda count: _steps(step, count))
        made_seconds = time.perf_counter() - began
        filter_figures = asyncio.run(_make_filter(folder / "ledger.db", charges))
        shares, rates = _compare(*asyncio.run(_measure(folder, wallets)))
        seconds, megabytes = _verify(folder)
        figures = {
            "wallets:": f"{wallets:,}",
            "file, GB:": f"{(folder / 'ledger.db').stat().st_size / 1e9:.2f}",
            "made in, s:": f"{made_seconds:,.0f}",
            **filter_figures,
            **rates,
            "verify, s:": f"{seconds:,.0f}",
            "verify, peak MB:": f"{megabytes:,.0f}",
        }
    assert megabytes <= VERIFY_MEGABYTES_MAX, figures
    # What an app waits for. A settlement it does not, and its share is only told: it writes pages all over the file.
    assert min(shares["admissions/s"], shares["captures/s"]) >= SHARE_MIN, figures
    return figures


def _steps(step: Step, charges: int) -> None:
    for _ in range(charges // 1_000):
        step()


async def _create(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="maker", create=True)
    await store.close()


async def _open(path: Path, *, create: bool = False) -> SqliteLedgerStore:
    """As a gateway that is not told otherwise."""
    told = Store(path="ledger.db")
    return await SqliteLedgerStore.open(
        path,
        clock=SystemClock(),
        owner_id="soak",
        create=create,
        cache_mebibytes=told.cache_mebibytes,
        request_filter_mebibytes=told.request_filter_mebibytes,
    )


async def _until_whole(store: SqliteLedgerStore, seconds_max: int) -> float:
    """How long it took until the store knew every charge's request."""
    began = time.perf_counter()
    async with asyncio.timeout(seconds_max):
        while not store.has_whole_request_filter:  # noqa: ASYNC110 - the store itself waits for nobody
            await asyncio.sleep(0.01)
    return time.perf_counter() - began


async def _make_filter(path: Path, charges: int) -> Figures:
    """The first start, which reads all charges and, if they are many, stores what it knows of them."""
    store = await _open(path)
    cpu_seconds = time.process_time()
    seconds = await _until_whole(store, FILTER_SECONDS_MAX)
    cpu_seconds = time.process_time() - cpu_seconds
    is_stored, stored_bytes = charges <= UNCOVERED_CHARGES_MIN, 0
    async with asyncio.timeout(FILTER_SECONDS_MAX):
        while not is_stored:
            await asyncio.sleep(1)
            with closing(sqlite3.connect(path)) as raw:
                is_stored, stored_bytes = raw.execute(STORED).fetchone()
    await store.close()
    return {
        "its filter made in, s, CPU s:": f"{seconds:,.0f}, {cpu_seconds:,.0f}",
        "its filter as stored, MB:": f"{stored_bytes / 1e6:,.1f}",
    }


def _forget(path: Path) -> None:
    """Make the system forget the file, as it does by itself when its memory is needed or a machine starts."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


async def _measure(folder: Path, wallets: int) -> tuple[list[Timed], list[Timed]]:
    """Rounds on both files in turns, forgotten before each; on the large one each on other wallets, anywhere in it."""
    clock, chance = SystemClock(), random.Random(SEED)
    _forget(folder / "ledger.db")
    large = await _open(folder / "ledger.db")
    small = await _open(folder / "empty.db", create=True)
    await _until_whole(large, FILTER_READ_SECONDS_MAX)
    names = [f"s{number:07d}" for number in range(STREAMS)]
    await asyncio.gather(*(open_wallet(small, name, clock.now_us(), GRANT_MICROCREDITS) for name in names))
    gc.freeze()  # as a gateway does once it serves
    of_large, of_small = [], []
    try:
        for _ in range(ROUNDS):
            anywhere = [f"s{number:07d}" for number in chance.sample(range(wallets), STREAMS)]
            _forget(folder / "ledger.db")
            of_large.append(await run_round(large, anywhere, clock.now_us()))
            _forget(folder / "empty.db")
            of_small.append(await run_round(small, names, clock.now_us()))
    finally:
        await large.close()
        await small.close()
    return of_large, of_small


def _compare(large: list[Timed], small: list[Timed]) -> tuple[dict[str, float], Figures]:
    """The large file's share of the empty one's rate, by step; and the rates, to be read."""
    big, empty = summary(large, []), summary(small, [])
    shares: dict[str, float] = {}
    figures: dict[str, str] = {}
    for what, rates, empty_rates in (
        ("admissions/s", big.reserves_a_second, empty.reserves_a_second),
        ("captures/s", big.captures_a_second, empty.captures_a_second),
        ("settles/s", big.settles_a_second, empty.settles_a_second),
        ("cycles/s", big.cycles_a_second, empty.cycles_a_second),
        ("CPU of a cycle, us", big.cpu_us, empty.cpu_us),
    ):
        shares[what] = median(a / b for a, b in zip(rates, empty_rates, strict=True))
        figures[f"{what}, here, in an empty file, share:"] = (
            f"{median(rates):,.0f}, {median(empty_rates):,.0f}, {shares[what]:.2f}"
        )
    return shares, figures


def _verify(folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of ``metergate ledger verify``, which must find no difference."""
    write_config(folder, openai_backend("http://127.0.0.1:9/v1"))
    began = time.perf_counter()
    command = [sys.executable, "-m", "metergate", "ledger", "verify", "--config", str(folder / "metergate.toml")]
    peak_megabytes = watch(command)
    return time.perf_counter() - began, peak_megabytes

"""The store on a ledger of ten million charges beside a new one, and the memory of `verify` on it."""

import asyncio
import gc
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.cycles import Timed, run_round, summary
from bench.store import STREAMS, open_wallet
from gateway_process import openai_backend, write_config

from metergate.clock import SystemClock
from metergate.config.schema import Store
from metergate.stores.sqlite import SqliteLedgerStore
from soak.generating import GRANT_MICROCREDITS, generate
from soak.parts import Figures, Step
from soak.watching import watch

ROUNDS = 30
SEED = 20261124
WALLETS_SHARE = 10  # charges a wallet

# Of an empty file's rate.
SHARE_MIN = 0.8

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
        shares, rates = _compare(*asyncio.run(_measure(folder, wallets)))
        seconds, megabytes = _verify(folder)
        figures = {
            "wallets:": f"{wallets:,}",
            "file, GB:": f"{(folder / 'ledger.db').stat().st_size / 1e9:.2f}",
            "made in, s:": f"{made_seconds:,.0f}",
            **rates,
            "verify, s:": f"{seconds:,.0f}",
            "verify, peak MB:": f"{megabytes:,.0f}",
        }
    assert megabytes <= VERIFY_MEGABYTES_MAX, figures
    assert min(shares[what] for what in ("admissions/s", "captures/s", "settles/s")) >= SHARE_MIN, figures
    return figures


def _steps(step: Step, charges: int) -> None:
    for _ in range(charges // 1_000):
        step()


async def _create(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="maker", create=True)
    await store.close()


async def _measure(folder: Path, wallets: int) -> tuple[list[Timed], list[Timed]]:
    """Rounds on both files in turns; on the large one each on other wallets, anywhere in it."""
    clock, chance = SystemClock(), random.Random(SEED)
    cache = Store(path="ledger.db").cache_mebibytes  # of a gateway that is not told another
    large = await SqliteLedgerStore.open(
        folder / "ledger.db", clock=clock, owner_id="soak", create=False, cache_mebibytes=cache
    )
    small = await SqliteLedgerStore.open(
        folder / "empty.db", clock=clock, owner_id="soak", create=True, cache_mebibytes=cache
    )
    names = [f"s{number:07d}" for number in range(STREAMS)]
    await asyncio.gather(*(open_wallet(small, name, clock.now_us(), GRANT_MICROCREDITS) for name in names))
    gc.freeze()  # as a gateway does once it serves
    of_large, of_small = [], []
    try:
        for _ in range(ROUNDS):
            anywhere = [f"s{number:07d}" for number in chance.sample(range(wallets), STREAMS)]
            of_large.append(await run_round(large, anywhere, clock.now_us()))
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

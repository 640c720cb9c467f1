"""The store on a ledger of ten million charges beside a new one, and the memory of `verify` on it."""

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from statistics import median

from bench.cycles import Timed, run_round, summary
from bench.store import STREAMS, open_wallet
from gateway_process import openai_backend, write_config

from metergate.app import SystemClock
from metergate.stores.sqlite import SqliteLedgerStore
from soak.figures import Figure, Progress
from soak.generating import GRANT_MICROCREDITS, generate

# A tenth as many wallets. A run with fewer says that it missed this bar.
CHARGES_MIN = 10_000_000
CHARGES = int(os.environ.get("SOAK_CHARGES", CHARGES_MIN))
WALLETS = CHARGES // 10
ROUNDS = 30
SEED = 20261124

# Of an empty file's rate.
SHARE_MIN = 0.8

# Memory of `verify` that does not depend on the size of the ledger: Python and its libraries, and a page of rows.
VERIFY_MEGABYTES_MAX = 300


def run(folder: Path, progress: Progress) -> list[Figure]:
    """Make the ledger, run rounds of cycles on it and on an empty one in turns, and verify it."""
    began = time.perf_counter()
    asyncio.run(_create(folder / "ledger.db"))
    generate(folder / "ledger.db", wallets=WALLETS, charges=CHARGES, progress=progress)
    made_seconds = time.perf_counter() - began
    big, empty = asyncio.run(_measure(folder, progress))
    progress("verifying")
    seconds, megabytes = _verify(folder)
    return [
        Figure(
            what="wallets, charges",
            value=f"{WALLETS:,}, {CHARGES:,}",
            bar="1,000,000, 10,000,000",
            is_met=CHARGES >= 10_000_000,
        ),
        Figure(what="file, GB; made in, s", value=f"{_size(folder) / 1e9:.1f}; {made_seconds:,.0f}"),
        *_compare(big, empty),
        Figure(what="verify, s", value=f"{seconds:,.0f}"),
        Figure(
            what="verify, peak memory, MB",
            value=f"{megabytes:,.0f}",
            bar=f"{VERIFY_MEGABYTES_MAX}",
            is_met=megabytes <= VERIFY_MEGABYTES_MAX,
        ),
    ]


async def _create(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="maker", create=True)
    await store.close()


def _size(folder: Path) -> int:
    return (folder / "ledger.db").stat().st_size


async def _measure(folder: Path, progress: Progress) -> tuple[list[Timed], list[Timed]]:
    """Rounds on both files in turns; on the large one each on other wallets, anywhere in it."""
    clock, chance = SystemClock(), random.Random(SEED)
    large = await SqliteLedgerStore.open(folder / "ledger.db", clock=clock, owner_id="soak", create=False)
    small = await SqliteLedgerStore.open(folder / "empty.db", clock=clock, owner_id="soak", create=True)
    names = [f"s{number:07d}" for number in range(STREAMS)]
    await asyncio.gather(*(open_wallet(small, name, clock.now_us(), GRANT_MICROCREDITS) for name in names))
    of_large, of_small = [], []
    try:
        for turn in range(ROUNDS):
            progress(f"round {turn + 1} of {ROUNDS}")
            anywhere = [f"s{number:07d}" for number in chance.sample(range(WALLETS), STREAMS)]
            of_large.append(await run_round(large, anywhere, clock.now_us()))
            of_small.append(await run_round(small, names, clock.now_us()))
    finally:
        await large.close()
        await small.close()
    return of_large, of_small


def _compare(large: list[Timed], small: list[Timed]) -> list[Figure]:
    big, empty = summary(large, []), summary(small, [])
    figures = []
    for what, rates, empty_rates in (
        ("admissions/s", big.reserves_a_second, empty.reserves_a_second),
        ("captures/s", big.captures_a_second, empty.captures_a_second),
        ("settles/s", big.settles_a_second, empty.settles_a_second),
        ("whole cycles/s", big.cycles_a_second, empty.cycles_a_second),
    ):
        share = median(a / b for a, b in zip(rates, empty_rates, strict=True))
        figures.append(
            Figure(
                what=f"{what}: this file, an empty one, share",
                value=f"{median(rates):,.0f}, {median(empty_rates):,.0f}, {share:.2f}",
                bar=f"{SHARE_MIN}",
                is_met=share >= SHARE_MIN,
            )
        )
    return figures


def _verify(folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of ``metergate ledger verify``, which must find no difference."""
    write_config(folder, openai_backend("http://127.0.0.1:9/v1"))
    began = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "metergate", "ledger", "verify", "--config", str(folder / "metergate.toml")],
        os.environ,
    )
    _, status, used = os.wait4(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "verify found a difference"
    return time.perf_counter() - began, used.ru_maxrss / 1_000

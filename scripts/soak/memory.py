"""The memory and time of every command that reads a whole ledger: what it needs must not grow with the ledger."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_process import openai_backend, write_config

from metergate.clock import SystemClock
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.stores.sqlite.connection import COMMAND_CACHE_MEBIBYTES
from soak.generating import generate
from soak.parts import Figures, Step
from soak.watching import watch

# Charges of the smaller ledger for each of the larger one's, and of each wallet.
SMALLER = 10
WALLETS_SHARE = 10

# Python and its libraries, SQLite's caches and a page of rows; Parquet's library alone has some 70.
MEGABYTES_MAX = 300

# What a larger ledger may need more: the allocator's luck, the index of a longer WAL, a list of Parquet's row groups.
GROWTH_MEGABYTES_MAX = 25

# Caches of writers, which are bounded but which a small ledger does not fill: `compact` has one of the old file and one
# of the new.
CACHE_MEGABYTES = COMMAND_CACHE_MEBIBYTES * 1_048_576 / 1_000_000
CACHES = {"compact": 2, "pruning": 1}

SCRIPTS = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command needed."""

    seconds: float
    peak_megabytes: float


def memory(thousands: int, step: Step) -> Figures:
    """Run every command on a ledger of so many thousand charges, on one of a tenth, and on one of a single wallet."""
    charges = thousands * 1_000
    with tempfile.TemporaryDirectory() as name:
        few, many, single = Path(name, "few"), Path(name, "many"), Path(name, "single")
        smaller = _costs_of(few, wallets=charges // SMALLER // WALLETS_SHARE, charges=charges // SMALLER)
        larger = _costs_of(many, wallets=charges // WALLETS_SHARE, charges=charges)
        _make(single, wallets=1, charges=charges)
        smaller["verify, one wallet"] = smaller["verify"]
        larger["verify, one wallet"] = _cost(single, "ledger", "verify")
        for _ in range(thousands):
            step()
    figures = {
        f"{what}, s, peak MB, of a tenth:": (
            f"{cost.seconds:,.1f}, {cost.peak_megabytes:,.0f}, {smaller[what].peak_megabytes:,.0f}"
        )
        for what, cost in larger.items()
    }
    for what, cost in larger.items():
        assert cost.peak_megabytes <= MEGABYTES_MAX, (what, figures)
        growth_max = GROWTH_MEGABYTES_MAX + CACHES.get(what, 0) * CACHE_MEGABYTES
        assert cost.peak_megabytes <= smaller[what].peak_megabytes + growth_max, (what, figures)
    return figures


def _costs_of(folder: Path, *, wallets: int, charges: int) -> dict[str, Cost]:
    _make(folder, wallets=wallets, charges=charges)
    costs = {"verify": _cost(folder, "ledger", "verify")}
    for what in ("charges", "transfers"):
        for file_format in ("jsonl", "csv", "parquet"):
            file = folder / f"{what}.{file_format}"
            costs[f"export {what} {file_format}"] = _cost(
                folder, "ledger", "export", what, "--output", str(file), "--format", file_format
            )
            file.unlink()
    costs["backup"] = _cost(folder, "ledger", "backup", str(folder / "copy.db"))
    costs["restore"] = _cost(folder, "ledger", "restore", str(folder / "copy.db"))
    costs["compact"] = _cost(folder, "ledger", "compact")
    costs["pruning"] = _run([sys.executable, str(SCRIPTS / "soak" / "pruning.py"), str(folder / "ledger.db")])
    return costs


def _make(folder: Path, *, wallets: int, charges: int) -> None:
    folder.mkdir()
    write_config(folder, openai_backend("http://127.0.0.1:9/v1"))
    asyncio.run(_create(folder / "ledger.db"))
    generate(folder / "ledger.db", wallets=wallets, charges=charges, made=lambda _: None)


async def _create(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="maker", create=True)
    await store.close()


def _cost(folder: Path, *arguments: str) -> Cost:
    return _run([sys.executable, "-m", "metergate", *arguments, "--config", str(folder / "metergate.toml")])


def _run(command: Sequence[str]) -> Cost:
    began = time.perf_counter()
    peak_megabytes = watch(command)
    return Cost(time.perf_counter() - began, peak_megabytes)

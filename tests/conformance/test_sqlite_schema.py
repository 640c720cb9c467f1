"""Every index is there for a query, and every query of the hot path has its index; what is denied leaves no row."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_grant, a_reserve, a_settle, open_wallet, reserve

from metergate.core.errors import InsufficientCredit
from metergate.stores.sqlite import (
    SqliteLedgerStore,
    auditing,
    compacting,
    epochs,
    erased_names,
    erasing,
    expiring,
    loading,
    queries,
    reading_all,
    saving,
    setting_up,
    stored_filter,
    upkeep,
)

MODULES = (
    auditing,
    compacting,
    epochs,
    erased_names,
    erasing,
    expiring,
    loading,
    queries,
    reading_all,
    saving,
    setting_up,
    stored_filter,
    upkeep,
)

# Indexes that keep a promise: no two rows with one of these.
PROMISES: dict[str, set[tuple[str, ...]]] = {
    "charges": {("charge_id",), ("reservation_id",), ("subscriber_id", "authorization_id", "request_id")},
    "keys": {("secret_hash",)},
}

IS_SQL = re.compile(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)\b")


@pytest.fixture
async def database(tmp_path: Path) -> sqlite3.Connection:
    await (
        await SqliteLedgerStore.open(tmp_path / "ledger.db", clock=FakeClock(NOW_US), owner_id="g", create=True)
    ).close()
    return sqlite3.connect(tmp_path / "ledger.db")


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The named SQL texts of a module."""
    for name, value in vars(module).items():
        for part in value if isinstance(value, tuple) else (value,):
            if name.isupper() and name[0] != "_" and isinstance(part, str) and IS_SQL.match(part):
                yield f"{module.__name__.rpartition('.')[2]}.{name}", part.format(conditions="")


def plans(database: sqlite3.Connection) -> dict[str, list[str]]:
    """What SQLite does for each statement."""
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for name, sql in statements(module):
            numbered = [int(number) for number in re.findall(r"\?(\d+)", sql)]
            named = set(re.findall(r":(\w+)", sql))
            values = dict.fromkeys(named, 1) if named else [1] * (max(numbered) if numbered else sql.count("?"))
            rows = database.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
            found.setdefault(name, []).extend(row[3] for row in rows)
    return found


async def test_every_index_serves_a_query_or_keeps_a_promise(database: sqlite3.Connection) -> None:
    with closing(database):
        used = {
            match
            for details in plans(database).values()
            for detail in details
            for match in re.findall(r"INDEX (\w+)", detail)
        }
        unused = set()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            for _, index, _, origin, _ in database.execute(f"PRAGMA index_list({table})").fetchall():
                columns = tuple(row[2] for row in database.execute(f"PRAGMA index_info({index})").fetchall())
                is_promise = origin == "pk" or columns in PROMISES.get(table, set())
                if index not in used and not is_promise:
                    unused.add(index)
        assert unused == set()


async def test_no_statement_of_a_batch_reads_a_whole_table(database: sqlite3.Connection) -> None:
    with closing(database):
        scans = {
            (name, detail)
            for name, details in plans(database).items()
            if name.startswith(("loading.", "saving.", "setting_up.", "erasing.", "erased_names.", "stored_filter."))
            for detail in details
            if re.match(r"SCAN (?!wanted|json_each)", detail) and "VIRTUAL" not in detail
        }
    assert scans == set()


async def test_requests_that_are_denied_leave_no_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant(amount=20))
    await reserve(store)
    await store.settle(a_settle(15, owner=store.owner, captured=20))

    def rows() -> dict[str, int]:
        with closing(sqlite3.connect(path)) as raw:
            names = [name for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            return {name: raw.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}

    before = rows()
    for number in range(20):
        with pytest.raises(InsufficientCredit):
            await store.reserve(a_reserve(f"denied-{number}", request_id=f"d-{number}", owner=store.owner))
    assert rows() == before
    await store.close()

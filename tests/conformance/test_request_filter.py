"""The SQLite store's filter of charges' requests: whatever happens, no charge is missing in it once it is whole."""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_grant, a_reserve, a_settle, available, differences, open_wallet, reserve
from request_filters import keeping_of, unknown_charges, until_whole

from metergate.core.errors import RequestIdConflict, StoreUnavailable
from metergate.core.operations import Replayed, Reserved
from metergate.stores.sqlite import SqliteLedgerStore, filter_keeping, loading, stored_filter
from metergate.stores.sqlite.backing_up import copy_ledger
from metergate.stores.sqlite.request_filter import RequestFilter
from metergate.stores.sqlite.write_operations import SetUp


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(autouse=True)
def store_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not covered is stored, without delay; the store does so by itself for many charges only."""
    monkeypatch.setattr(filter_keeping, "UNCOVERED_CHARGES_MIN", 0)
    monkeypatch.setattr(filter_keeping, "CHUNK_PAUSE_SECONDS", 0)
    monkeypatch.setattr(filter_keeping, "PIECE_CHARGES", 3)
    monkeypatch.setattr(filter_keeping, "PAUSE_FACTOR", 0)


async def open_store(path: Path, mebibytes: int | None = 1, *, create: bool = False) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(
        path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=create, request_filter_mebibytes=mebibytes
    )


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteLedgerStore]:
    store = await open_store(path, create=True)
    await open_wallet(store, a_grant("grant-1", 1_000_000))
    await until_whole(store)
    yield store
    await store.close()


async def charge(store: SqliteLedgerStore, *names: str) -> None:
    await asyncio.gather(*(reserve(store, name) for name in names))
    await asyncio.gather(*(store.settle(a_settle(9, name, owner=store.owner, captured=9)) for name in names))


@contextmanager
def reads_of(store: SqliteLedgerStore) -> Iterator[list[str]]:
    """The statements with which the writer looked for requests among the charges."""
    found: list[str] = []
    connection = store._writer._connection
    assert connection is not None
    beginning = loading.CHARGES_BY_REQUEST.split("json_each")[0]
    connection.set_trace_callback(lambda sql: found.append(sql) if sql.startswith(beginning) else None)
    try:
        yield found
    finally:
        connection.set_trace_callback(None)


async def stored_anew(path: Path, store: SqliteLedgerStore) -> None:
    """Wait until what is stored covers every charge."""
    async with asyncio.timeout(30):
        while True:
            with closing(sqlite3.connect(path)) as raw:
                (last,) = raw.execute(stored_filter.CHARGE_LAST).fetchone()
                covers = [row[0] for row in raw.execute("SELECT covers_charge_number FROM request_filter")]
            if covers == [last] * store._writer.request_filter.chunks:  # type: ignore[union-attr]
                return
            await asyncio.sleep(0.01)


async def test_of_a_new_request_no_charge_is_looked_for_and_of_one_that_was_charged_it_is(
    store: SqliteLedgerStore,
) -> None:
    with reads_of(store) as reads:
        await charge(store, "res-1", "res-2")
    assert reads == []
    with reads_of(store) as reads:
        again = await store.reserve(a_reserve("again", request_id="request-of-res-2", owner=store.owner))
        assert isinstance(again, Replayed)
    assert len(reads) == 1
    with pytest.raises(RequestIdConflict):
        await store.reserve(a_reserve("more", request_id="request-of-res-1", content_hash=b"other", owner=store.owner))
    assert isinstance(await store.reserve(a_reserve("new", owner=store.owner)), Reserved)


@pytest.mark.parametrize("mebibytes", [1, None])
async def test_without_a_whole_filter_every_request_is_looked_for(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int | None
) -> None:
    """In batches of new ones, charged ones, and charged ones with other content."""
    names = [f"res-{number}" for number in range(60)]
    await charge(store, *names[::2])
    await store.close()

    async def wait(_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(filter_keeping.FilterKeeping, "fill", wait)
    store = await open_store(path, mebibytes)
    before = await available(store)
    contents = [b"other" if number % 4 == 0 else b"content" for number in range(len(names))]
    with reads_of(store) as reads:
        outcomes = await asyncio.gather(
            *(
                store.reserve(
                    a_reserve(f"again-{name}", request_id=f"request-of-{name}", content_hash=content, owner=store.owner)
                )
                for name, content in zip(names, contents, strict=True)
            ),
            return_exceptions=True,
        )
    expected = [RequestIdConflict, Reserved, Replayed, Reserved]
    assert [type(outcome) for outcome in outcomes] == [expected[number % 4] for number in range(len(names))]
    assert reads
    assert not store.has_whole_request_filter
    assert before - await available(store) == 100 * 30
    assert await differences(store) == []
    await store.close()


async def test_a_batch_whose_charges_cannot_be_read_fails_and_the_store_comes_back(
    store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise requests that were charged before would be charged again."""
    await charge(store, "res-1")
    with monkeypatch.context() as patch:
        patch.setattr(loading, "CHARGES_BY_REQUEST", "SELECT * FROM nothing")
        with pytest.raises(StoreUnavailable):
            await store.reserve(a_reserve("again", request_id="request-of-res-1", owner=store.owner))
    async with asyncio.timeout(30):
        while True:
            try:
                await store.check()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    assert store.has_whole_request_filter, "it is of this ledger, whatever connection is open"
    again = await store.reserve(a_reserve("again", request_id="request-of-res-1", owner=store.owner))
    assert isinstance(again, Replayed)
    assert unknown_charges(path_of(store), store) == []
    assert await differences(store) == []


def path_of(store: SqliteLedgerStore) -> Path:
    return store._path


async def test_what_is_stored_is_read_at_the_next_start_and_only_what_it_does_not_cover_after_it(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await charge(store, *(f"res-{number}" for number in range(8)))
    await keeping_of(store).store_if_due()
    await charge(store, "late-1", "late-2")
    await store.close()
    command = await open_store(path, None)  # as recovery by `metergate` itself
    await charge(command, "late-3")
    await command.close()
    added: list[tuple[str, ...]] = []
    add = RequestFilter.add

    def note(self: RequestFilter, requests: list[tuple[str, ...]]) -> None:
        requests = list(requests)
        added.extend(requests)
        add(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(RequestFilter, "add", note)
    opened = await open_store(path)
    await until_whole(opened)
    assert [request[2] for request in added] == [f"request-of-late-{number}" for number in (1, 2, 3)]
    assert unknown_charges(path, opened) == []
    await opened.close()


async def test_a_filter_is_stored_by_itself_when_much_is_not_covered(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_keeping, "LOOK_SECONDS", 0)
    await charge(store, *(f"res-{number}" for number in range(8)))
    await store.close()
    opened = await open_store(path)
    await stored_anew(path, opened)
    monkeypatch.setattr(filter_keeping, "UNCOVERED_CHARGES_MIN", 1)
    await charge(opened, "late-1")
    assert not await writes_of(opened), "one charge more is not much"
    await charge(opened, "late-2")
    await stored_anew(path, opened)
    await opened.close()


async def writes_of(store: SqliteLedgerStore) -> list[object]:
    """What storing the filter would write now."""
    written: list[object] = []

    async def write(set_up: SetUp) -> None:
        written.append(set_up)

    keeping = keeping_of(store, write=write)
    keeping._stored_charge_number = min(
        row[0]
        for row in await store._read(
            lambda query: query.connection.execute("SELECT covers_charge_number FROM request_filter").fetchall()
        )
    )
    await keeping.store_if_due()
    return written


async def test_a_process_killed_between_two_chunks_leaves_a_filter_that_denies_no_charge(
    store: SqliteLedgerStore, path: Path, tmp_path: Path
) -> None:
    """The files after each transaction are what a killed process leaves; charges come meanwhile."""
    await charge(store, *(f"res-{number}" for number in range(8)))
    await keeping_of(store).store_if_due()
    await charge(store, *(f"more-{number}" for number in range(8)))
    copies: list[Path] = []

    async def write(set_up: SetUp) -> None:
        await store._commits.submit(set_up, is_new_work=False)
        await charge(store, f"between-{len(copies)}")
        folder = tmp_path / f"copy-{len(copies)}"
        folder.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", folder)
        copies.append(folder / path.name)

    await keeping_of(store, write=write).store_if_due()
    covered = []
    for copy in copies:
        with closing(sqlite3.connect(copy)) as raw:
            covered.append(raw.execute("SELECT min(covers_charge_number) FROM request_filter").fetchone()[0])
        opened = await open_store(copy)
        await until_whole(opened)
        assert unknown_charges(copy, opened) == []
        await opened.close()
    assert covered == [8] * 7 + [16]


@pytest.mark.parametrize("sizes", [(1, 2, 1), (2, 1, 2)])
async def test_with_another_size_it_is_made_anew_and_stored_in_place_of_the_old(
    store: SqliteLedgerStore, path: Path, caplog: pytest.LogCaptureFixture, sizes: tuple[int, ...]
) -> None:
    await charge(store, *(f"res-{number}" for number in range(8)))
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DELETE FROM request_filter")
    for size in sizes:
        opened = await open_store(path, size)
        await stored_anew(path, opened)
        assert opened.has_whole_request_filter
        assert unknown_charges(path, opened) == []
        await opened.close()
    assert f"it is of {sizes[1] * 1024} KiB, not of {sizes[2] * 1024}" in caplog.text


def _one_bit_less(raw: sqlite3.Connection) -> None:
    (bits,) = raw.execute("SELECT bits FROM request_filter WHERE chunk_number = 3").fetchone()
    raw.execute("UPDATE request_filter SET bits = ? WHERE chunk_number = 3", (bits[:-1] + bytes([bits[-1] ^ 1]),))


DAMAGES: dict[str, Callable[[sqlite3.Connection], object]] = {
    "a bit": _one_bit_less,
    "another chunk": lambda raw: raw.execute(
        "UPDATE request_filter SET (bits, seal) = (SELECT bits, seal FROM request_filter WHERE chunk_number = 2) "
        "WHERE chunk_number = 3"
    ),
    "covers more": lambda raw: raw.execute("UPDATE request_filter SET covers_charge_number = 99"),
    "of another ledger": lambda raw: raw.execute(
        "UPDATE request_filter SET seal = x'00112233445566778899aabbccddeeff'"
    ),
    "nothing": lambda raw: raw.execute("UPDATE request_filter SET bits = x'' WHERE chunk_number = 7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_or_foreign_chunk_is_not_trusted(
    store: SqliteLedgerStore, path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    await charge(store, *(f"res-{number}" for number in range(12)))
    await keeping_of(store).store_if_due()
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        DAMAGES[damage](raw)
    opened = await open_store(path)
    await until_whole(opened)
    assert "the stored request filter" in caplog.text
    assert "is made anew: its chunk" in caplog.text
    assert unknown_charges(path, opened) == []
    assert await differences(opened) == []
    await opened.close()


async def test_chunks_that_are_gone_are_made_anew(store: SqliteLedgerStore, path: Path) -> None:
    await charge(store, *(f"res-{number}" for number in range(12)))
    await keeping_of(store).store_if_due()
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DELETE FROM request_filter WHERE chunk_number = 7")
    opened = await open_store(path)
    await stored_anew(path, opened)
    assert unknown_charges(path, opened) == []
    await opened.close()


async def test_a_backup_has_a_filter_of_its_own_charges(store: SqliteLedgerStore, path: Path, tmp_path: Path) -> None:
    """What was stored at its instant; what was charged after it, is no charge of it."""
    await charge(store, *(f"res-{number}" for number in range(8)))
    await keeping_of(store).store_if_due()
    copy_ledger(path, tmp_path / "backup.db", lambda *_: None)
    await charge(store, "late")
    opened = await open_store(tmp_path / "backup.db")
    await until_whole(opened)
    assert unknown_charges(tmp_path / "backup.db", opened) == []
    with reads_of(opened) as reads:
        assert isinstance(await opened.reserve(a_reserve("late", owner=opened.owner)), Reserved)
    assert reads == []
    await opened.close()


async def test_while_what_is_stored_cannot_be_read_requests_are_looked_for(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await charge(store, "res-1")
    await store.close()
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(filter_keeping, "LOOK_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(filter_keeping, "read_chunk", fail)
        opened = await open_store(path)
        async with asyncio.timeout(30):
            await failed.wait()
        again = await opened.reserve(a_reserve("again", request_id="request-of-res-1", owner=opened.owner))
        assert isinstance(again, Replayed)
        assert not opened.has_whole_request_filter
    await until_whole(opened)
    assert "is put off" in caplog.text
    assert unknown_charges(path, opened) == []
    await opened.close()


async def test_a_filter_that_takes_long_says_how_far_it_is(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await charge(store, *(f"res-{number}" for number in range(8)))
    await store.close()
    monkeypatch.setattr(filter_keeping, "TOLD_EVERY_SECONDS", -1)
    caplog.set_level(logging.INFO)
    opened = await open_store(path)
    await until_whole(opened)
    assert "has 3 charges so far" in caplog.text
    assert "is whole: 8 charges" in caplog.text
    await opened.close()


@pytest.mark.parametrize(("bits_min", "is_told"), [(8, False), (2**20, True)])
async def test_a_filter_that_is_small_for_its_charges_is_told_of(
    store: SqliteLedgerStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    bits_min: int,
    *,
    is_told: bool,
) -> None:
    await charge(store, *(f"res-{number}" for number in range(9)))  # of 2**23 bits
    await store.close()
    monkeypatch.setattr(filter_keeping, "BITS_A_CHARGE_MIN", bits_min)
    opened = await open_store(path)
    await until_whole(opened)
    assert ("raise [store] request_filter_mebibytes" in caplog.text) is is_told
    await opened.close()


async def test_a_store_that_is_closed_while_it_fills_or_stores_its_filter_leaves_no_task(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await charge(store, *(f"res-{number}" for number in range(8)))
    await store.close()
    held: Callable[..., Awaitable[object]]
    for verb in ("fill", "store_if_due"):
        reached = asyncio.Event()

        async def held(*_: object, reached: asyncio.Event = reached) -> None:
            reached.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(filter_keeping.FilterKeeping, verb, held)
            opened = await open_store(path)
            async with asyncio.timeout(30):
                await reached.wait()
            await opened.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "ledger-filter"] == []

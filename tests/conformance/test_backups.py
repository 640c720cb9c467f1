"""A backup is the ledger at one instant, also while it is written. A restore puts back what verifies, or nothing."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import NOW_US, a_capture, a_grant, a_settle, a_wallet, available, differences, open_wallet, reserve

from metergate.core.errors import BackupRefused, FileRefused, StoreRefused
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore, connection
from metergate.stores.sqlite.backing_up import Restoration, copy_ledger
from metergate.stores.whole_files import WholeFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def open_store(path: Path) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)


def back_up(path: Path, file: Path) -> None:
    with WholeFile(file) as whole:
        copy_ledger(path, whole.partial, _quiet)
        whole.keep()


def restore(file: Path, path: Path) -> Path | None:
    with Restoration(file, path) as restoration:
        restoration.prepare(_quiet)
        return restoration.put_in_place()


def _quiet(_done: int, _total: int) -> None:
    """Nobody looks."""


async def audit(path: Path) -> None:
    reader = await SqliteLedgerReader.open_read_only(path)
    assert await differences(reader) == []
    await reader.close()


def listing(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which stays, and an empty WAL and its index, which a reader makes."""
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith((".lock", "-shm"))}
    return {name: content for name, content in contents.items() if content or not name.endswith("-wal")}


# --- backing up -----------------------------------------------------------------------------------------------------


async def test_a_backup_is_taken_while_the_ledger_is_written_and_adds_up(path: Path) -> None:
    store = await open_store(path)
    await open_wallet(store, a_grant(amount=100_000))
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            await reserve(store, f"res-{number}", request_id=f"r-{number}")
            await store.capture(a_capture(50, f"res-{number}", owner=store.owner))
            await store.settle(a_settle(50, f"res-{number}", owner=store.owner))
        return number

    writing = asyncio.create_task(write())
    for number in range(5):
        backup = path.with_name(f"backup-{number}.db")
        await asyncio.to_thread(back_up, path, backup)
        await audit(backup)
        assert backup.stat().st_mode & 0o077 == 0
    stop.set()
    assert await writing > 5
    await store.close()


async def test_a_backup_is_one_file_and_nothing_is_left_beside_it(path: Path) -> None:
    await (await open_store(path)).close()
    folder = path.parent / "backups"
    folder.mkdir()
    back_up(path, folder / "backup.db")
    assert os.listdir(folder) == ["backup.db"]


@pytest.mark.parametrize("taken", ["file", "folder", "dangling link"])
async def test_a_backup_takes_nobodys_place(path: Path, taken: str) -> None:
    await (await open_store(path)).close()
    file = path.with_name("backup.db")
    if taken == "file":
        file.touch()
    elif taken == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere")
    with pytest.raises(FileRefused, match="it is there already"):
        back_up(path, file)
    assert not list(path.parent.glob(".*.partial*"))


async def test_a_backup_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await open_store(path)).close()

    def full(_done: int, _total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileRefused, match="No space left"), WholeFile(path.with_name("backup.db")) as whole:
        copy_ledger(path, whole.partial, full)
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith("ledger.db")] == []


async def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    await (await open_store(path)).close()
    with pytest.raises(FileRefused, match="No such file or directory"):
        back_up(path, path.parent / "nowhere" / "backup.db")


# --- restoring ------------------------------------------------------------------------------------------------------


async def spent(path: Path) -> Path:
    """A ledger of which alice has spent 9 since its backup, and the backup."""
    store = await open_store(path)
    await open_wallet(store, a_grant())
    backup = path.with_name("backup.db")
    await asyncio.to_thread(back_up, path, backup)
    await reserve(store)
    await store.settle(a_settle(9, owner=store.owner))
    await store.close()
    return backup


async def test_what_was_backed_up_is_back_and_the_old_store_is_kept_with_all_it_had(path: Path) -> None:
    backup = await spent(path)
    kept = restore(backup, path)
    assert kept is not None
    for file, credit in ((path, 1_000), (kept, 991)):
        store = await open_store(file)
        assert await available(store) == credit
        assert await differences(store) == []
        await store.close()


async def test_what_a_killed_gateway_left_in_the_wal_goes_with_the_old_store(path: Path, tmp_path: Path) -> None:
    backup = await spent(path)
    store = await open_store(path)
    await store.add_grant(a_grant("only-in-the-wal", 7))
    dead = tmp_path / "dead"
    dead.mkdir()
    for suffix in ("", "-wal", "-shm"):
        (dead / f"ledger.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    await store.close()
    kept = restore(backup, dead / "ledger.db")
    assert kept is not None
    assert not Path(f"{dead / 'ledger.db'}-wal").exists()
    for file, credit in ((dead / "ledger.db", 1_000), (kept, 998)):
        opened = await open_store(file)
        assert await available(opened) == credit
        await opened.close()


async def test_a_wal_without_its_database_does_not_reach_the_restored_one(path: Path) -> None:
    backup = await spent(path)
    store = await open_store(path)
    await store.add_grant(a_grant("only-in-the-wal", 7))
    wal = Path(f"{path}-wal").read_bytes()
    await store.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(wal)
    assert restore(backup, path) is None
    store = await open_store(path)
    assert await available(store) == 1_000
    await store.close()


async def test_a_store_that_cannot_be_read_any_more_is_put_aside_and_replaced(path: Path) -> None:
    backup = await spent(path)
    path.write_bytes(b"x" * 9_000)
    kept = restore(backup, path)
    assert kept is not None
    assert kept.read_bytes() == b"x" * 9_000
    await audit(path)


async def test_a_restore_is_refused_while_a_gateway_serves(path: Path) -> None:
    backup = await spent(path)
    store = await open_store(path)
    with pytest.raises(StoreRefused, match="writing it"):
        restore(backup, path)
    assert await available(store) == 991
    await store.close()
    assert restore(backup, path) is not None


async def test_a_backup_of_an_older_version_is_brought_up_to_this_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = connection.migrations()
    old = path.with_name("old.db")
    with closing(sqlite3.connect(old)) as raw:
        for script in newest[:2]:
            raw.executescript(script)
        raw.executescript(f"PRAGMA application_id = {connection.APPLICATION_ID}; PRAGMA user_version = 2;")
    before = old.read_bytes()
    restore(old, path)
    await audit(path)
    assert old.read_bytes() == before


def truncated_to(bytes_kept: int) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:bytes_kept])

    return spoil


def with_a_damaged_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40_000:44_000] = b"\xff" * 4_000
    file.write_bytes(content)


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA user_version = 999")


def foreign(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("CREATE TABLE theirs (x)")


def of_another_ledger(file: Path) -> None:
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("UPDATE meta SET content_key = zeroblob(32)")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (truncated_to(0), "it is empty"),
        (truncated_to(50), "not a database|malformed"),
        (truncated_to(5_000), "malformed"),
        (truncated_to(60_000), "malformed|damaged"),
        (with_a_damaged_page, "damaged"),
        (newer, "its version 999 is newer"),
        (foreign, "another application"),
        (of_another_ledger, "another ledger"),
        (Path.unlink, "no such file"),
        (lambda file: file.write_text("hello " * 9_000), "not a database"),
    ],
)
async def test_what_is_no_whole_backup_of_this_ledger_is_refused_and_nothing_changes(
    path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    backup = await spent(path)
    spoil(backup)
    before = listing(path.parent)
    with pytest.raises(BackupRefused, match=problem):
        restore(backup, path)
    assert listing(path.parent) == before
    store = await open_store(path)
    assert await available(store) == 991
    await store.close()


async def test_a_restore_that_is_given_up_changes_nothing_and_frees_the_lock(path: Path) -> None:
    backup = await spent(path)
    before = listing(path.parent)

    def give_up() -> None:
        with Restoration(backup, path) as restoration:
            restoration.prepare(_quiet)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert listing(path.parent) == before
    store = await open_store(path)
    await store.add_subscriber(a_wallet("bob"))
    await store.close()

"""What is true of the SQLite store in particular: which files it takes, and how it fails."""

# ruff: noqa: ASYNC240 - a test may wait for a small file

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fakes import FakeClock
from ledger_rows import (
    NOW_US,
    a_capture,
    a_grant,
    a_reserve,
    a_settle,
    a_wallet,
    available,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.errors import (
    LedgerInvariantBroken,
    Overloaded,
    RequestInProgress,
    RequestInvalid,
    ReservationNotOwned,
    StoreRefused,
    StoreUnavailable,
)
from metergate.core.operations import Captured, CaptureStatus, Reserved
from metergate.core.rows import Charge, Grant
from metergate.ports import ChargeFilter, Commit
from metergate.stores import group_commit
from metergate.stores.sqlite import (
    SqliteLedgerReader,
    SqliteLedgerStore,
    connection,
    expiring,
    loading,
    queries,
    writer,
)

SECONDS_MAX = 20.0


async def open_store(path: Path, *, create: bool = True) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=create)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteLedgerStore]:
    opened = await open_store(path)
    yield opened
    await opened.close()


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as another program opens it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        yield opened


# --- opening --------------------------------------------------------------------------------------------------------


def make_nothing(_path: Path) -> None:
    """Leave the file missing."""


def make_directory(path: Path) -> None:
    path.mkdir()


def make_text(path: Path) -> None:
    path.write_text("not a database, but long enough to be looked at " * 40)


def make_empty(path: Path) -> None:
    path.touch()


def make_foreign(path: Path) -> None:
    with raw(path) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")


def make_marked(path: Path) -> None:
    with raw(path) as foreign:
        foreign.execute("PRAGMA application_id = 12345")
        foreign.execute("CREATE TABLE theirs (x)")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_nothing, "there is no such file"),
        (make_directory, "it is not a file"),
        (make_text, "it is not a database"),
        (make_empty, "it is empty"),
        (make_foreign, "it belongs to another application"),
        (make_marked, "it belongs to another application"),
    ],
)
async def test_a_file_that_is_no_ledger_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None], problem: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreRefused, match=problem):
        await open_store(path, create=False)
    with pytest.raises(StoreRefused, match=problem):
        await SqliteLedgerReader.open_read_only(path)
    assert (path.read_bytes() if path.is_file() else None) == before


async def test_a_foreign_database_is_not_taken_over_when_asked_to_create(path: Path) -> None:
    make_foreign(path)
    with pytest.raises(StoreRefused, match="another application"):
        await open_store(path)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"there is no directory .*nowhere"):
        await open_store(tmp_path / "nowhere" / "ledger.db")


async def test_a_newer_schema_is_refused(path: Path) -> None:
    await (await open_store(path)).close()
    with raw(path) as newer:
        newer.execute("PRAGMA user_version = 999")
    for opening in (open_store(path), SqliteLedgerReader.open_read_only(path)):
        with pytest.raises(StoreRefused, match="its version 999 is newer"):
            await opening


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
async def test_a_read_only_file_is_refused(path: Path) -> None:
    await (await open_store(path)).close()
    path.chmod(0o400)
    with pytest.raises(StoreRefused):
        await open_store(path)


async def test_a_second_writer_is_refused_until_the_first_closes(store: SqliteLedgerStore, path: Path) -> None:
    with pytest.raises(StoreRefused, match="writing it"):
        await open_store(path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(StoreRefused, match="writing it"):
        await open_store(link)
    await store.close()
    again = await open_store(path, create=False)
    assert again.owner.epoch == store.owner.epoch + 1
    assert again.content_key == store.content_key
    await again.close()


async def test_a_ledger_with_a_second_name_is_refused_under_either(path: Path) -> None:
    await (await open_store(path)).close()
    other = path.with_name("hard.db")
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(StoreRefused, match="hard links"):
            await open_store(name)
        with pytest.raises(StoreRefused, match="hard links"):
            await SqliteLedgerReader.open_read_only(name)
    other.unlink()
    await (await open_store(path)).close()


async def test_a_symbolic_link_leads_to_the_ledger(path: Path) -> None:
    await (await open_store(path)).close()
    link = path.with_name("link.db")
    link.symlink_to(path)
    store = await open_store(link)
    await open_wallet(store, a_grant())
    assert await available(store) == 1_000
    await store.close()


@pytest.mark.parametrize("name", ["a" * 300, "nul\0.db"])
async def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path, name: str) -> None:
    for opening in (open_store(tmp_path / name), SqliteLedgerReader.open_read_only(tmp_path / name)):
        with pytest.raises(StoreRefused):
            await opening


async def test_a_ledger_whose_content_key_is_gone_is_refused(path: Path) -> None:
    await (await open_store(path)).close()
    with raw(path) as tamperer:
        tamperer.execute("DELETE FROM meta")
    with pytest.raises(StoreRefused, match="content key is gone"):
        await open_store(path)


async def test_owners_that_reserved_nothing_leave_no_row_and_epochs_never_repeat(path: Path) -> None:
    epochs = []
    for reserves in (False, True, False, False, True, False):
        store = await open_store(path)
        epochs.append(store.owner.epoch)
        await open_wallet(store, a_grant(amount=10_000))
        if reserves:
            await reserve(store, f"res-{store.owner.epoch}")
        await store.close()
    last = await open_store(path)
    assert epochs == [1, 2, 3, 4, 5, 6]
    with raw(path) as other:
        kept = [epoch for (epoch,) in other.execute("SELECT epoch FROM owners ORDER BY epoch")]
        assert other.execute("PRAGMA foreign_key_check").fetchall() == []
    assert kept == [2, 5, 7]
    held = last._writer._connection
    assert held is not None
    assert held.execute("PRAGMA foreign_keys").fetchone() == (1,)
    await last.close()


async def test_the_file_is_durable_and_private(store: SqliteLedgerStore, path: Path) -> None:
    held = store._writer._connection
    assert held is not None
    assert held.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert held.execute("PRAGMA synchronous").fetchone() == (2,)
    assert path.stat().st_mode & 0o077 == 0


async def test_an_opening_that_is_cancelled_leaves_nothing_locked(path: Path) -> None:
    opening = asyncio.create_task(open_store(path))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await (await open_store(path)).close()


async def test_a_refused_opening_that_is_cancelled_says_that_it_was_cancelled(tmp_path: Path) -> None:
    opening = asyncio.create_task(open_store(tmp_path / "nowhere" / "ledger.db"))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_closing_commits_what_was_handed_over_and_refuses_the_rest(path: Path) -> None:
    store = await open_store(path)
    await open_wallet(store, a_grant())
    granting = asyncio.create_task(store.add_grant(a_grant("last")))
    await asyncio.sleep(0)
    await store.close()
    assert (await granting).grant_id == "last"
    with pytest.raises(StoreUnavailable):
        await store.add_grant(a_grant("too-late"))
    with pytest.raises(StoreUnavailable):
        await store.count_subscribers()
    await store.close()


@pytest.mark.parametrize(
    ("stored", "cost"),
    [('[["b", "HTTP 500"]]', (0, 0)), ('[["b", "HTTP 500", 7, 120]]', (7, 120))],
    ids=["before attempts had a cost", "now"],
)
async def test_attempts_are_read_as_every_version_stored_them(
    store: SqliteLedgerStore, path: Path, stored: str, cost: tuple[int, int]
) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    await store.settle(a_settle(10, captured=10, owner=store.owner))
    with raw(path) as other:
        other.execute("UPDATE charges SET attempts = ?", (stored,))
    page = await store.list_charges("alice", ChargeFilter(), cursor=None, size=10)
    [attempt] = page.rows[0].attempts
    assert (attempt.backend_id, attempt.problem) == ("b", "HTTP 500")
    assert (attempt.prompt_tokens, attempt.milliseconds) == cost


# --- failing --------------------------------------------------------------------------------------------------------


async def test_a_full_disk_fails_closed_and_recovery_settles_what_was_open(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    await open_wallet(store, a_grant(amount=10_000))
    await reserve(store, "open")
    old = store.owner
    held = store._writer._connection
    assert held is not None
    (pages,) = held.execute("PRAGMA page_count").fetchone()
    held.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable):
        await asyncio.gather(*(store.add_subscriber(a_wallet(f"subscriber-{number}")) for number in range(500)))

    # The connection with the limit is gone: the next operation opens the file again, in a new epoch.
    late = await store.capture(a_capture(20, "open", owner=old))
    assert late.status is CaptureStatus.CLOSED
    assert store.owner.epoch == old.epoch + 1
    (charge,) = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    assert charge.charged_microcredits == 9
    assert (await store.settle(a_settle(9, "open", owner=old))).charge == charge
    with pytest.raises(StoreUnavailable):
        await store.reserve(a_reserve("stale", owner=old))
    assert await differences(store) == []


async def test_a_file_held_by_another_program_is_unavailable_and_then_available_again(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.05)
    await open_wallet(store, a_grant())
    held = store._writer._connection
    assert held is not None
    held.execute("PRAGMA busy_timeout = 50")
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(2):  # the batch that fails, and one that cannot open the file again
            with pytest.raises(StoreUnavailable):
                await store.add_grant(a_grant(f"while-locked-{number}"))
        assert await available(store) == 1_000, "reading goes on"
    await store.add_grant(a_grant("after"))
    assert await available(store) == 2_000


async def test_reopening_waits_between_attempts(store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise StoreRefused(path="x", problem="gone")

    monkeypatch.setattr(store._commits, "_reopen", fail)
    store._writer.close()
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await store.add_subscriber(a_wallet())
    assert attempts == 1


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_deleted_file_is_noticed_and_never_made_anew(
    path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    store = await open_store(path)
    await open_wallet(store, a_grant())
    kept = path.read_bytes()
    Path(f"{path}{suffix}").unlink()
    with pytest.raises(StoreUnavailable):
        await store.add_grant(a_grant("lost"))
    if not suffix:
        with pytest.raises(StoreUnavailable):
            await store.add_grant(a_grant("lost"))
        assert not path.exists()
        path.write_bytes(kept)
        path.with_name("ledger.db-wal").unlink(missing_ok=True)
    await store.close()


async def test_a_lost_wal_loses_nothing_and_the_store_serves_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    store = await open_store(path)
    await open_wallet(store, a_grant())
    await reserve(store)
    await store.capture(a_capture(50, owner=store.owner))
    Path(f"{path}-wal").unlink()
    with pytest.raises(StoreUnavailable):
        await store.add_grant(a_grant("in-doubt"))
    await store.add_grant(a_grant("after"))
    (charge,) = (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows
    assert charge.charged_microcredits == 50
    assert await differences(store) == []
    await store.close()
    heir = await open_store(path)
    assert await available(heir) >= 2_000 - 50
    assert await differences(heir) == []
    await heir.close()


async def test_an_older_copy_in_its_place_is_not_opened_until_restart_and_not_destroyed_by_the_old_wal(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    store = await open_store(path)
    await open_wallet(store, a_grant())
    backup = tmp_path / "backup.db"
    with raw(path) as source, raw(backup) as copy:
        source.backup(copy)
    before = backup.read_bytes()
    for number in range(50):
        await store.add_grant(a_grant(f"after-the-backup-{number}"))
    backup.rename(path)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.add_grant(a_grant("late"))
    store._drop_query()
    with pytest.raises(StoreUnavailable):
        await available(store)
    with pytest.raises(StoreRefused, match="another file is in its place"):
        await differences_of_audit(store)
    assert path.read_bytes() == before
    await store.close()
    restored = await open_store(path)
    assert await available(restored) == 1_000
    assert await differences(restored) == []
    await restored.close()


async def differences_of_audit(store: SqliteLedgerStore) -> None:
    async for _ in store.audit():
        pass


async def test_a_deleted_lock_stops_the_store_for_good(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    store = await open_store(path)
    await open_wallet(store, a_grant())
    Path(f"{path}.lock").unlink()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.add_grant(a_grant("two writers?"))
    other = await open_store(path)
    with pytest.raises(StoreUnavailable):
        await store.add_grant(a_grant("two writers?"))
    await other.add_grant(a_grant("one writer"))
    await other.close()
    await store.close()


async def test_another_ledger_in_its_place_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    other = tmp_path / "other.db"
    await (await open_store(other)).close()
    store = await open_store(path)
    await open_wallet(store, a_grant())
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink()
    other.rename(path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.add_grant(a_grant("misled"))
    await store.close()
    with raw(path) as replaced:
        assert replaced.execute("SELECT count(*) FROM grants").fetchone() == (0,)


async def test_a_row_changed_by_another_program_stops_the_store(
    store: SqliteLedgerStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    await open_wallet(store, a_grant())
    await reserve(store)
    with raw(path) as other:
        other.execute("UPDATE reservations SET state = 'RELEASED', close_cause = 'CRASH', close_time_us = 0")
    with pytest.raises(StoreUnavailable):
        await store.capture(a_capture(50, owner=store.owner))


async def test_an_operation_that_cannot_be_written_does_not_fail_its_batch(store: SqliteLedgerStore) -> None:
    await open_wallet(store, a_grant())
    outcomes = await asyncio.gather(
        store.reserve(a_reserve("good", owner=store.owner)),
        store.reserve(a_reserve("half \ud800 a character", owner=store.owner)),
        store.reserve(a_reserve("too-late", owner=store.owner, now_us=2**63)),
        store.add_grant(a_grant("also-good")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes[:3]] == [Reserved, RequestInvalid, LedgerInvariantBroken]
    assert await available(store) == 1_900
    assert await differences(store) == []


async def test_new_work_is_refused_while_the_queue_is_full_but_running_streams_go_on(
    store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_wallet(store, a_grant())
    await reserve(store)
    monkeypatch.setattr(group_commit, "QUEUED_OPERATIONS_MAX", 1)
    outcomes = await asyncio.gather(
        store.add_grant(a_grant("queued")),
        store.add_grant(a_grant("one-too-many")),
        store.capture(a_capture(50, owner=store.owner)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Grant, Overloaded, Captured]


async def test_under_load_nothing_waits_for_others_that_a_first_token_waits_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[Commit] = []
    store = await SqliteLedgerStore.open(
        path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True, observe=commits.append
    )
    await open_wallet(store, a_grant())
    for wait in ("WAIT_S_EACH", "WAIT_S_MAX"):
        monkeypatch.setattr(group_commit, wait, 3600.0)  # what waits, waits for ever
    together = range(group_commit.SHARED_OPERATIONS_MIN)
    await asyncio.gather(*(store.check() for _ in together))
    async with asyncio.timeout(SECONDS_MAX):
        await store.reserve(a_reserve(owner=store.owner))
        await asyncio.gather(*(store.check() for _ in together))
        await store.capture(a_capture(10, owner=store.owner))
        await asyncio.gather(*(store.check() for _ in together))
    commits.clear()
    waiting = [
        asyncio.ensure_future(store.reserve(a_reserve("res-2", request_id="2", owner=store.owner), is_urgent=False)),
        asyncio.ensure_future(store.capture(a_capture(20, delivered_microcredits=10, owner=store.owner))),
        asyncio.ensure_future(store.settle(a_settle(20, owner=store.owner))),
    ]
    async with asyncio.timeout(SECONDS_MAX):
        while store.queued_operations < len(waiting) or store._commits._waiting is None:
            assert not commits, "one did not wait"
            await asyncio.sleep(0)
        await asyncio.gather(store.check(), *waiting)  # something urgent takes them along
    assert [commit.operations for commit in commits] == [len(waiting) + 1]
    await store.close()


async def test_its_observer_is_told_of_every_transaction_and_of_what_expired_in_it(path: Path) -> None:
    commits: list[Commit] = []
    clock = FakeClock(NOW_US)
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="gateway-1", create=True, observe=commits.append)
    await open_wallet(store, a_grant(amount=1_000, expire_time_us=NOW_US + 1))
    clock.advance(2)
    await asyncio.gather(store.add_grant(a_grant("more")), store.add_grant(a_grant("even-more")), store.check())
    assert store.queued_operations == 0
    await reserve(store, now_us=NOW_US + 2)
    assert [commit.has_failed for commit in commits] == [False] * len(commits)
    assert sum(commit.operations for commit in commits) == 8
    assert max(commit.operations for commit in commits) <= 3
    assert sum(commit.expired_microcredits for commit in commits) == 1_000
    await store.close()


async def test_a_check_of_a_store_that_failed_opens_it_again_and_tells_when_it_cannot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MAX", 0.0)
    commits: list[Commit] = []
    store = await SqliteLedgerStore.open(
        path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True, observe=commits.append
    )
    await store.check()
    epoch = store.owner.epoch
    store._writer.close()  # as after a failed commit
    with monkeypatch.context() as broken:
        broken.setattr(store._writer, "open", fail_to_open)
        with pytest.raises(StoreUnavailable):
            await store.check()
    await store.check()
    assert store.owner.epoch > epoch
    assert [commit.has_failed for commit in commits] == [False, True, False]
    await store.close()


def fail_to_open(*, create: bool) -> None:
    raise OSError("no space left on device")


# --- sweeping -------------------------------------------------------------------------------------------------------


async def test_books_that_cannot_be_read_keep_no_other_grant_from_expiring(
    store: SqliteLedgerStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await open_wallet(store, a_grant("alices", 10, expire_time_us=NOW_US + 2))
    await store.add_subscriber(a_wallet("bob"))
    for name, end_us in (("bobs", NOW_US + 1), ("bad", NOW_US + 9)):
        await store.add_grant(a_grant(name, 10, "bob", expire_time_us=end_us))
    with raw(path) as tamperer:
        tamperer.execute("UPDATE grants SET source = 'LOTTERY' WHERE grant_id = 'bad'")
    assert [await store.expire_grants(NOW_US + 2, 1) for _ in range(3)] == [1, 1, 0]
    assert "grants of 'bob' cannot expire" in caplog.text
    with raw(path) as other:
        left = dict(other.execute("SELECT grant_id, unspent_microcredits FROM grants").fetchall())
    assert left == {"alices": 0, "bobs": 10, "bad": 10}


async def test_a_sweep_that_the_store_does_not_take_is_told_and_done_the_next_time(
    store: SqliteLedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MIN", 0.0)
    monkeypatch.setattr(group_commit, "REOPEN_WAIT_S_MAX", 0.0)
    await open_wallet(store, a_grant("old", 10, expire_time_us=NOW_US + 1))
    with monkeypatch.context() as full:
        full.setattr(group_commit, "QUEUED_OPERATIONS_MAX", 0)
        with pytest.raises(Overloaded):
            await store.expire_grants(NOW_US + 1, 9)
    with monkeypatch.context() as broken:
        broken.setattr(store._writer, "open", fail_to_open)
        store._writer.close()
        with pytest.raises(StoreUnavailable):
            await store.expire_grants(NOW_US + 1, 9)
    assert await store.expire_grants(NOW_US + 1, 9) == 1
    assert await store.expire_grants(NOW_US + 1, 9) == 0
    assert await differences(store) == []


async def test_the_sweep_and_the_look_up_of_refunds_read_no_more_than_they_return(
    store: SqliteLedgerStore, path: Path
) -> None:
    with raw(path) as other:
        for sql, values in (
            (expiring.TO_SWEEP, (NOW_US, 9)),
            (loading.REFUNDS_BY_CHARGE, ("[]",)),
            (loading.CORRECTIONS_BY_ID, ("[]",)),
            (queries.CORRECTIONS_PAGE, ("alice", 9, 9)),
        ):
            plan = " ".join(row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            assert "USING INDEX" in plan, plan
            assert "TEMP B-TREE" not in plan, plan


# --- recovering -----------------------------------------------------------------------------------------------------


async def test_recovery_settles_every_open_reservation_in_bounded_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RECOVERY_BATCH", 3)
    store = await open_store(path)
    await open_wallet(store, a_grant(amount=10_000))
    await asyncio.gather(*(reserve(store, f"res-{number}") for number in range(10)))
    await store.close()
    heir = await open_store(path)
    balance = await heir.balance("alice", None, NOW_US)
    assert (balance.available_microcredits, balance.reserved_microcredits) == (10_000 - 90, 0)
    assert await differences(heir) == []
    await reserve(heir, "mine")
    with pytest.raises(ReservationNotOwned):
        await heir.settle(a_settle(9, "mine", owner=store.owner))
    await heir.close()


async def test_a_reservation_that_cannot_be_recovered_stays_open_and_keeps_nobody_out(path: Path) -> None:
    store = await open_store(path)
    await open_wallet(store, a_grant(amount=10_000))
    for name in ("first", "bad", "last"):
        await reserve(store, name)
    await store.close()
    with raw(path) as tamperer:
        tamperer.execute("UPDATE reservations SET allocations = 'x' WHERE reservation_id = 'bad'")
    heir = await open_store(path)
    await reserve(heir, "new")
    assert [charge.reservation_id for charge in await charges(heir)] == ["last", "first"]
    await heir.close()
    assert await open_store_and_find_open(path) == {"bad"}


async def charges(store: SqliteLedgerStore) -> tuple[Charge, ...]:
    return (await store.list_charges("alice", ChargeFilter(), cursor=None, size=9)).rows


async def open_store_and_find_open(path: Path) -> set[str]:
    await (await open_store(path)).close()
    with raw(path) as other:
        return {row[0] for row in other.execute("SELECT reservation_id FROM reservations WHERE state = 'ACTIVE'")}


async def test_the_audit_reads_one_moment_while_the_gateway_goes_on(store: SqliteLedgerStore, path: Path) -> None:
    await open_wallet(store, a_grant())
    await store.add_subscriber(a_wallet("bob"))
    reader = await SqliteLedgerReader.open_read_only(path)
    seen = []
    async for ledger in reader.audit():
        await store.add_grant(a_grant(f"during-{ledger.wallet.subscriber_id}", subscriber_id="bob"))
        seen.append((ledger.wallet.subscriber_id, len(ledger.grants)))
    assert seen == [("alice", 1), ("bob", 0)]
    await reader.close()


async def test_a_request_whose_reservation_cannot_be_recovered_does_not_run_again(path: Path) -> None:
    """It stays open, for people to look into; until then it is running."""
    store = await open_store(path)
    await open_wallet(store, a_grant())
    await reserve(store)
    await store.close()
    with raw(path) as other:
        other.execute("""UPDATE reservations SET allocations = '[["nothing",100]]'""")
    store = await open_store(path)
    with pytest.raises(RequestInProgress):
        await store.reserve(a_reserve("again", request_id="request-of-res-1", owner=store.owner))
    assert isinstance(await store.reserve(a_reserve("other", owner=store.owner)), Reserved)
    await store.close()

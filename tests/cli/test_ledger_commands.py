"""Commands on the ledger's files and accounts: what they print, what they refuse, and with which exit code."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
STORE = ("--store", "ledger.db")


@pytest.fixture
def alice(run: Run) -> Run:
    """A store in which alice has 5 credits."""
    assert run("subscriber", "create", "alice", *STORE)[0] == 0
    assert run("grant", "add", "alice", "--credits", "5", "--id", "alices-june", *STORE)[0] == 0
    return run


def test_accounts_are_shown_with_both_sides_and_add_up(alice: Run) -> None:
    code, out, _ = alice("ledger", "accounts", *STORE)
    assert code == 0
    assert re.search(r"payments\W+5\.000000\W+0\.000000\W+-5\.000000", out)
    assert re.search(r"grants\W+0\.000000\W+5\.000000\W+5\.000000", out)
    assert re.search(r"all\W+5\.000000\W+5\.000000\W+0\.000000", out)
    code, out, _ = alice("ledger", "accounts", "--until", "2001-01-01", *STORE)
    assert (code, "payments" in out) == (0, False)
    code, _, err = alice("ledger", "accounts", "--from", "yesterday", *STORE)
    assert code == 2
    assert "such as 2026-12-31" in err


@pytest.mark.parametrize(("file_format", "lines"), [("jsonl", 1), ("csv", 2)])
def test_an_export_tells_how_many_rows_and_the_hash_of_the_file(
    alice: Run, tmp_path: Path, file_format: str, lines: int
) -> None:
    code, out, _ = alice("ledger", "export", "transfers", "--format", file_format, "--output", "out", *STORE)
    assert code == 0
    content = (tmp_path / "out").read_bytes()
    assert json.loads(out) == {"file": "out", "rows": 1, "sha256": hashlib.sha256(content).hexdigest()}
    assert content.count(b"\n") == lines
    code, out, err = alice("ledger", "export", "transfers", "--output", "out", *STORE)
    assert (code, out) == (2, "")
    assert "it is there already" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("accounts", "--from", "2026-12-02", "--until", "2026-12-01"),
        ("export", "charges", "--output", "out", "--from", "2026-12-01T00:00:00Z", "--until", "2026-12-01T00:00:00Z"),
        ("export", "charges", "--output", "out", "--from", "2026-12-02T00:00:00Z", "--until", "2026-12-01T00:00:00Z"),
    ],
)
def test_a_range_that_ends_before_it_begins_is_refused(alice: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = alice("ledger", *arguments, *STORE)
    assert (code, out) == (2, "")
    assert "ends before --from begins" in err
    assert not (tmp_path / "out").exists()


def test_a_day_of_its_own_is_a_range(alice: Run) -> None:
    assert alice("ledger", "accounts", "--from", "2001-01-01", "--until", "2001-01-01", *STORE)[0] == 0


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("UPDATE wallets SET state = 'SUSPENDED'", "its corrections left it ACTIVE"),
        ("UPDATE grants SET expire_time_us = effective_time_us + 1", "but it says"),
        ("UPDATE grants SET rollover_microcredits_max = 1, rollover_seconds = 1", "rollover_microcredits_max 0, but"),
    ],
)
def test_what_another_program_changed_is_named_and_verify_exits_with_1(
    alice: Run, tmp_path: Path, tampering: str, named: str
) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as tamperer:
        assert tamperer.execute(tampering).rowcount == 1
    code, out, _ = alice("ledger", "verify", *STORE)
    assert code == 1
    assert named in " ".join(re.sub(r"[^\w,:;. ]", " ", out).split())


def test_a_backup_is_verified_and_restored_and_the_old_store_is_named(alice: Run, tmp_path: Path) -> None:
    code, out, err = alice("ledger", "backup", "backup.db", *STORE)
    assert (code, out) == (0, "backup.db\n")
    assert "No differences." in err
    alice("grant", "add", "alice", "--credits", "2", *STORE)
    code, out, _ = alice("ledger", "restore", "backup.db", *STORE)
    assert code == 0
    assert (tmp_path / out.strip()).exists()
    assert "5.000000" in alice("wallet", "show", "alice", *STORE)[1]


def test_a_backup_whose_books_differ_is_kept_and_not_restored(alice: Run, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as tamperer, tamperer:
        tamperer.execute("UPDATE transfers SET amount_microcredits = 1")
    code, out, err = alice("ledger", "backup", "backup.db", *STORE)
    assert (code, out) == (1, "backup.db\n")
    assert "differences" in err
    code, _, err = alice("ledger", "restore", "backup.db", *STORE)
    assert code == 2
    assert "its books differ" in err
    assert not list(tmp_path.glob("*.replaced-*"))


def test_a_forgotten_subscriber_is_printed_as_its_pseudonym_and_the_ledger_verifies(alice: Run, tmp_path: Path) -> None:
    assert alice("key", "issue", "alice", *STORE)[0] == 0
    code, out, _ = alice("subscriber", "erase", "alice", "--reason", "she asked", "--actor", "ops", *STORE)
    assert code == 0
    assert out.startswith("erased-")
    assert b"alice" not in (tmp_path / "ledger.db").read_bytes()
    assert alice("ledger", "verify", *STORE)[0] == 0
    code, _, err = alice("subscriber", "erase", "alice", "--reason", "again", "--actor", "ops", *STORE)
    assert code == 2
    assert "There is no subscribers/alice." in err


def test_an_erasure_whose_reason_names_whom_it_forgets_is_refused(alice: Run) -> None:
    code, _, err = alice("subscriber", "erase", "alice", "--reason", "alice asked", "--actor", "ops", *STORE)
    assert code == 2
    assert "reason: must not have the id" in err


def test_compacting_tells_the_sizes_before_and_after(alice: Run, tmp_path: Path) -> None:
    before = (tmp_path / "ledger.db").stat().st_size
    code, out, err = alice("ledger", "compact", *STORE)
    assert (code, out) == (0, "")
    after = (tmp_path / "ledger.db").stat().st_size
    assert f"written anew: {before / 1000:.1f} kB before, {after / 1000:.1f} kB now" in err
    assert alice("ledger", "compact", "--store", "nothing.db")[0] == 2

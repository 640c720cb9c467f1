"""Setting up by hand: commands on the store, what they print, what they refuse, and with which exit code."""

import hashlib
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metergate.cli import ledger

Run = Callable[..., tuple[int, str, str]]


STORE = ("--store", "ledger.db")


@pytest.fixture
def alice(run: Run) -> Run:
    """The same, with a store in which alice has a wallet."""
    assert run("subscriber", "create", "alice", *STORE)[0] == 0
    return run


def test_help_is_shown_without_a_command_and_names_every_group(run: Run) -> None:
    _, out, err = run()
    for group in ("serve", "subscriber", "grant", "key", "wallet", "ledger"):
        assert group in out + err


def test_the_version_is_printed(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"metergate \d+\.\d+\.\d+\n", out)


def test_every_command_explains_itself_with_an_example(run: Run) -> None:
    for command in (
        ("subscriber", "create"),
        ("grant", "add"),
        ("key", "issue"),
        ("key", "revoke"),
        ("key", "list"),
        ("authorization", "revoke"),
        ("authorization", "list"),
        ("grant", "reverse"),
        ("charge", "list"),
        ("charge", "refund"),
        ("wallet", "show"),
        ("wallet", "adjust"),
        ("wallet", "suspend"),
        ("wallet", "resume"),
        ("usage", "mismatch"),
        ("ledger", "verify"),
        ("ledger", "accounts"),
        ("ledger", "backup"),
        ("ledger", "compact"),
        ("ledger", "restore"),
        ("ledger", "export"),
        ("subscriber", "erase"),
        ("serve",),
    ):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert "Example: " in out, command


def test_creating_a_subscriber_creates_the_store_and_says_so(run: Run, tmp_path: Path) -> None:
    code, out, err = run("subscriber", "create", "alice", *STORE)
    assert (code, out) == (0, "alice\n")
    assert "creating the store ledger.db" in err
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0


def test_creating_a_subscriber_again_is_harmless(alice: Run) -> None:
    assert alice("subscriber", "create", "alice", *STORE) == (0, "alice\n", "")


def test_granted_credits_are_in_the_wallet(alice: Run) -> None:
    code, out, err = alice("grant", "add", "alice", "--credits", "5", "--expires-in", "31d", "--id", "june", *STORE)
    assert (code, out) == (0, "june\n")
    assert "5.000000 credits for alice" in err
    code, out, _ = alice("wallet", "show", "alice", *STORE)
    assert code == 0
    assert re.search(r"available\W+5\.000000", out)
    assert "june" in out


def test_a_random_grant_id_is_printed(alice: Run) -> None:
    ids = {alice("grant", "add", "alice", "--credits", "0.25", *STORE)[1] for _ in range(2)}
    assert len(ids) == 2
    assert "0.500000" in alice("wallet", "show", "alice", *STORE)[1]


def test_the_same_grant_command_twice_adds_credits_once(alice: Run) -> None:
    command = ("grant", "add", "alice", "--credits", "5", "--expires-in", "31d", "--id", "june", *STORE)
    first = alice(*command)
    assert alice(*command) == first
    assert re.search(r"available\W+5\.000000", alice("wallet", "show", "alice", *STORE)[1])


@pytest.mark.parametrize("other", [("--credits", "6"), ("--credits", "5", "--expires-in", "32d")])
def test_the_same_grant_id_with_other_content_is_refused(alice: Run, other: tuple[str, ...]) -> None:
    alice("grant", "add", "alice", "--credits", "5", "--expires-in", "31d", "--id", "june", *STORE)
    code, out, err = alice("grant", "add", "alice", *other, "--id", "june", *STORE)
    assert (code, out) == (2, "")
    assert "The id june was used for another grant." in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--credits", "x"), "is not a decimal number"),
        (("--credits", "0.0000001"), "finer than one microcredit"),
        (("--credits", "1e30"), "out of range"),
        (("--credits", "1e999999"), "out of range"),
        (
            ("--credits", "5", "--effective-time", "2999-07-01T00:00:00Z", "--expire-time", "2999-06-30T00:00:00Z"),
            "expire_time: must be later than effective_time",
        ),
        (("--credits", "5", "--effective-time", "2027-01-01T00:00:00"), "needs a time zone"),
        (("--credits", "5", "--expire-time", "9999-12-31T23:59:59-12:00"), "must be from 1970"),
        (("--credits", "5", "--expire-time", "0001-01-01T00:00:00+12:00"), "must be from 1970"),
        (("--credits", "0"), "amount_microcredits"),
        (("--credits=-1",), "amount_microcredits"),
        (("--credits", "5", "--expires-in", "31"), "must be a number and m, h or d"),
        (("--credits", "5", "--expire-time", "2099-01-01"), "needs a time zone"),
        (("--credits", "5", "--expire-time", "soon"), "must be a time"),
        (("--credits", "5", "--expire-time", "2001-01-01T00:00:00Z"), "expire_time"),
        (("--credits", "5", "--expire-time", "2099-01-01T00:00:00Z", "--expires-in", "1d"), "either"),
        (("--credits", "5", "--source", "LOTTERY"), "LOTTERY"),
        (("--credits", "5", "--id", "a/b"), "must be 1 to 128 letters"),
        (("--credits", "5", "--rollover-max-credits", "2"), "give both"),
        (("--credits", "5", "--rollover-for", "31d"), "give both"),
        (("--credits", "5", "--rollover-max-credits", "2", "--rollover-for", "31d"), "expire_time"),
        (("--credits", "5", "--expires-in", "1d", "--rollover-max-credits=-2", "--rollover-for", "31d"), "rollover"),
        ((), "credits"),
    ],
)
def test_a_bad_grant_is_refused_with_the_reason(alice: Run, arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = alice("grant", "add", "alice", *arguments, *STORE)
    assert (code, out) == (2, "")
    assert reason in re.sub(r"[\s│]+", " ", err)
    assert "Traceback" not in err


def test_a_grant_of_next_month_is_shown_and_cannot_be_spent_yet(alice: Run) -> None:
    command = ("grant", "add", "alice", "--credits", "5", "--id", "july", "--expires-in", "31d", *STORE)
    for _ in range(2):
        code, out, err = alice(*command, "--effective-time", "2999-07-01T12:00:00Z")
        assert (code, out) == (0, "july\n")
        assert "5.000000 credits for alice, from 2999-07-01" in err
        assert "expiring: 2999-08-01" in err
    code, _, err = alice(*command, "--effective-time", "2999-07-02T12:00:00Z")
    assert code == 2
    assert "The id july was used for another grant." in err
    shown = alice("wallet", "show", "alice", *STORE)[1]
    assert re.search(r"available\W+0\.000000", shown)
    assert re.search(r"july +TOP_UP.* 2999-07-01.* 2999-08-01", shown)


def test_a_grant_for_nobody_is_refused(alice: Run) -> None:
    code, _, err = alice("grant", "add", "bob", "--credits", "5", *STORE)
    assert code == 2
    assert "There is no subscribers/bob" in err


def test_a_key_is_printed_once_alone_on_stdout_and_only_its_hash_is_stored(alice: Run, tmp_path: Path) -> None:
    code, out, err = alice("key", "issue", "alice", "--app", "notes", "--cap-credits", "2", "--models", "b,a", *STORE)
    key = out.strip()
    assert code == 0
    assert re.fullmatch(r"mg_[A-Za-z0-9_-]{43}", key)
    assert key not in err
    assert "it is shown only now" in err
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key.encode() not in stored
    assert hashlib.sha256(key.encode()).digest() in stored


def test_an_authorization_can_have_a_second_key_but_not_other_caps(alice: Run) -> None:
    consent = ("key", "issue", "alice", "--app", "notes", "--authorization", "notes-1", *STORE)
    first, second = alice(*consent), alice(*consent)
    assert first[0] == second[0] == 0
    assert first[1] != second[1]
    code, out, err = alice(*consent, "--cap-credits", "2")
    assert (code, out) == (2, "")
    assert "The id notes-1 was used for another authorization" in err


def test_a_key_can_be_revoked_and_the_first_time_stands(alice: Run) -> None:
    match = re.search(r"key (\w+) of", alice("key", "issue", "alice", *STORE)[2])
    assert match
    code, _, first = alice("key", "revoke", match[1], *STORE)
    assert code == 0
    assert "is revoked since" in first
    assert alice("key", "revoke", match[1], *STORE) == (0, "", first)


def test_an_authorization_is_revoked_with_all_its_keys_and_takes_no_other(alice: Run) -> None:
    consent = ("key", "issue", "alice", "--app", "notes", "--authorization", "notes-1", "--cap-credits", "2", *STORE)
    for _ in range(2):
        assert alice(*consent)[0] == 0
    alice("key", "issue", "alice", "--app", "maps", "--authorization", "maps-1", *STORE)
    code, out, first = alice("authorization", "revoke", "notes-1", *STORE)
    assert (code, out) == (0, "")
    assert "authorization notes-1 is revoked since 20" in first
    assert alice("authorization", "revoke", "notes-1", *STORE) == (0, "", first)
    code, out, err = alice(*consent)
    assert (code, out) == (2, "")
    assert "was revoked" in err
    code, out, _ = alice("authorization", "list", "alice", *STORE)
    assert code == 0
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if "-1" in line]
    assert [row[:5] for row in rows] == [
        ["notes-1", "notes", "2", "0.000000", "2.000000"],
        ["maps-1", "maps", "1", "0.000000"],
    ]
    assert [row[5:] != [] for row in rows] == [True, False]
    assert alice("ledger", "verify", *STORE)[0] == 0


def test_revoking_an_unknown_authorization_is_refused(alice: Run) -> None:
    code, _, err = alice("authorization", "revoke", "nothing", *STORE)
    assert code == 2
    assert "There is no authorizations/nothing" in err


def test_revoking_an_unknown_key_is_refused(alice: Run) -> None:
    code, _, err = alice("key", "revoke", "nothing", *STORE)
    assert code == 2
    assert "There is no" in err


@pytest.mark.parametrize(
    "command",
    [
        ("grant", "add", "alice", "--credits", "5"),
        ("grant", "reverse", "alice", "june", "--reason", "r"),
        ("charge", "refund", "alice", "c1", "--credits", "1", "--reason", "r"),
        ("wallet", "suspend", "alice", "--reason", "r"),
        ("key", "issue", "alice"),
        ("key", "revoke", "k"),
        ("authorization", "revoke", "a"),
        ("wallet", "show", "alice"),
        ("ledger", "verify"),
    ],
)
def test_a_store_that_is_not_there_is_refused_and_not_created(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    code, _, err = run(*command, "--store", "nowhere.db")
    assert code == 2
    assert "The store nowhere.db cannot be opened: there is no such file" in err
    assert not (tmp_path / "nowhere.db").exists()


def test_a_file_of_another_application_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    code, _, err = run("subscriber", "create", "alice", "--store", "other.db")
    assert code == 2
    assert "belongs to another application" in err
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_missing_configuration_is_refused_by_name(run: Run) -> None:
    code, _, err = run("wallet", "show", "alice")
    assert code == 2
    assert "metergate.toml: it cannot be read: there is no such file: go where it is, or name it with --config" in err


def test_a_wrong_configuration_is_refused_with_every_problem(run: Run, tmp_path: Path) -> None:
    (tmp_path / "metergate.toml").write_text('[store]\npath = "ledger.db"\nsize = 1\n')
    code, _, err = run("serve")
    assert code == 2
    assert "metergate.toml: store.size: is not a known key" in err
    assert "metergate.toml: models: is missing" in err
    assert "Traceback" not in err


HOLD = """
import asyncio, sys
from pathlib import Path
from metergate.cli.store import writing

async def hold():
    async with writing(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(hold())
"""


def test_a_store_that_another_process_writes_is_refused_for_writing_and_readable(alice: Run, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "ledger.db")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            code, out, err = alice("grant", "add", "alice", "--credits", "5", *STORE)
            assert (code, out) == (2, "")
            assert "stop it first" in err
            assert alice("wallet", "show", "alice", *STORE)[0] == 0
        finally:
            holder.stdin.close()
    assert alice("grant", "add", "alice", "--credits", "5", *STORE)[0] == 0


def test_an_intact_ledger_verifies(alice: Run) -> None:
    alice("grant", "add", "alice", "--credits", "5", *STORE)
    code, out, _ = alice("ledger", "verify", *STORE)
    assert code == 0
    assert "No differences." in out
    assert re.search(r"payments\W+-5\.000000", out)
    assert re.search(r"held by subscribers\W+5\.000000", out)


def test_a_ledger_that_was_tampered_with_is_reported_with_exit_code_1(alice: Run, tmp_path: Path) -> None:
    alice("grant", "add", "alice", "--credits", "5", "--id", "june", *STORE)
    with sqlite3.connect(tmp_path / "ledger.db") as tampered:
        changed = tampered.execute("UPDATE grants SET unspent_microcredits = unspent_microcredits - 1")
        assert changed.rowcount == 1
    tampered.close()
    code, out, _ = alice("ledger", "verify", *STORE)
    assert code == 1
    assert "june" in out
    assert "differences" in out


@pytest.mark.parametrize("command", [("subscriber", "create", "alice"), ("ledger", "verify")])
def test_a_store_with_an_impossible_path_is_refused(run: Run, command: tuple[str, ...]) -> None:
    code, _, err = run(*command, "--store", "a" * 300)
    assert code == 2
    assert "cannot be opened: File name too long" in err
    assert "Traceback" not in err


def test_a_defect_is_one_line_with_exit_code_3(alice: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(ledger, "audit_store", fail)
    assert alice("ledger", "verify", *STORE) == (3, "", "error: unexpected RuntimeError: two lines\n")


@pytest.mark.parametrize("command", [("ledger", "verify"), ("wallet", "show", "alice"), ("ledger", "--help")])
def test_output_that_nobody_reads_is_no_finding(alice: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    store = STORE if "--help" not in command else ()
    done = subprocess.run(
        [sys.executable, "-m", "metergate", *command, *store],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, "")


def test_keys_are_listed_with_their_expiry_and_without_their_secrets(alice: Run) -> None:
    code, app_key, err = alice("key", "issue", "alice", "--app", "notes", "--expires-in", "90d", *STORE)
    assert code == 0
    assert "expiring: 20" in err
    key_id = re.findall(r"key (\w+) of", err)[0]
    own_key = alice("key", "issue", "alice", *STORE)[1]
    alice("key", "revoke", key_id, *STORE)
    code, out, _ = alice("key", "list", "alice", *STORE)
    assert code == 0
    for secret in (app_key.strip(), own_key.strip()):
        assert secret[:9] in "".join(out.split())
        assert secret not in "".join(out.split())
    assert "notes" in out
    assert "(own)" in out
    assert out.count("never") >= 3, "neither was used, and the subscriber's own does not expire"


def test_keys_of_nobody_cannot_be_listed(alice: Run) -> None:
    code, out, err = alice("key", "list", "nobody", *STORE)
    assert (code, out) == (2, "")
    assert "There is no subscribers/nobody." in err


@pytest.mark.parametrize("expiry", ["0d", "90", "-1d", "1y", "999999999d"])
def test_an_expiry_that_is_none_issues_no_key(alice: Run, expiry: str) -> None:
    code, out, _ = alice("key", "issue", "alice", f"--expires-in={expiry}", *STORE)
    assert (code, out) == (2, "")

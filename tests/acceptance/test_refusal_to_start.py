"""A gateway that cannot serve safely does not start: exit code 2, one clear line for each problem, no traceback."""

import asyncio
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import DAY, Authority
from gateway_process import GatewayProcess, metergate, open_wallets, write_config

BACKEND = 'kind = "openai"\nurl = "http://127.0.0.1:9/v1"'


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "metergate.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def foreign_database(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()


def no_database(folder: Path) -> None:
    (folder / "ledger.db").write_bytes(b"GIF89a" * 1_000)


def another_directory(folder: Path) -> None:
    edit(folder, 'path = "ledger.db"', 'path = "missing/ledger.db"')


def cut_database(folder: Path) -> None:
    asyncio.run(open_wallets(folder / "ledger.db", {"alice": 1_000}))
    content = (folder / "ledger.db").read_bytes()
    (folder / "ledger.db").write_bytes(content[: len(content) // 2])


def unknown_key(folder: Path) -> None:
    edit(folder, "[limits]", "[limits]\nslice_token = 3")


def no_file(folder: Path) -> None:
    (folder / "metergate.toml").unlink()


def plaintext_beyond_this_machine(folder: Path) -> None:
    edit(folder, 'address = "127.0.0.1:0"', 'address = "0.0.0.0:0"')


def serve_tls(folder: Path) -> None:
    tls = 'tls = { certificate_path = "tls.crt", key_path = "tls.key" }'
    edit(folder, 'address = "127.0.0.1:0"', f'address = "127.0.0.1:0"\n{tls}')


def expired_certificate(folder: Path) -> None:
    serve_tls(folder)
    Authority().issue(begins=-9 * DAY, ends=-DAY).write(folder)


def key_that_others_can_read(folder: Path) -> None:
    serve_tls(folder)
    Authority().issue().write(folder)
    (folder / "tls.key").chmod(0o644)


PROBLEMS: list[tuple[Callable[[Path], None], str]] = [
    (foreign_database, "it belongs to another application"),
    (no_database, "it is not a database"),
    (another_directory, "there is no directory"),
    (cut_database, "ledger.db cannot be opened: "),
    (unknown_key, "limits.slice_token: is not a known key"),
    (no_file, "metergate.toml: it cannot be read"),
    (plaintext_beyond_this_machine, "listener.address: 0.0.0.0:0 is beyond this machine"),
    (expired_certificate, "listener.tls.certificate_path: tls.crt cannot be used for TLS: it expired at "),
    (key_that_others_can_read, "listener.tls.key_path: tls.key cannot be used for TLS: its mode 0644"),
]


@pytest.mark.parametrize(("spoil", "line"), PROBLEMS, ids=[spoil.__name__ for spoil, _ in PROBLEMS])
def test_serve_is_refused_with_exit_code_2_and_a_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], line: str
) -> None:
    write_config(tmp_path, BACKEND)
    spoil(tmp_path)
    result = metergate(tmp_path, "serve")
    assert result.returncode == 2, result.stderr
    assert line in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2, result.stderr


@pytest.mark.parametrize("key", ["listener.address", "metrics.address"])
def test_a_port_in_use_is_refused_with_cause_and_cure_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    write_config(tmp_path, BACKEND)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv(f"METERGATE_{key.upper().replace('.', '__')}", address)
        refused = metergate(tmp_path, "serve")
    cause = f"cannot listen on {address}: another process listens there: stop it, or change {key}"
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1] == f"error: The gateway {cause}."
    assert "add_port" not in refused.stderr
    assert "Traceback" not in refused.stderr
    # The store was closed well: no log is left to recover, and the next start serves.
    monkeypatch.undo()
    assert not (tmp_path / "ledger.db-wal").exists()
    with GatewayProcess(tmp_path):
        pass


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("203.0.113.1:50051", "this machine has no such address: change metrics.address"),
        ("no-such-host.invalid:50051", "nobody knows the host no-such-host.invalid: change metrics.address"),
    ],
)
def test_an_address_of_nobody_here_is_refused_with_cause_and_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, line: str
) -> None:
    write_config(tmp_path, BACKEND)
    monkeypatch.setenv("METERGATE_METRICS__ADDRESS", address)
    refused = metergate(tmp_path, "serve")
    assert refused.returncode == 2
    assert line in refused.stderr

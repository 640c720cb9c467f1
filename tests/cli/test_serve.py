"""The gateway's process: it says where it serves, keeps its store to itself, and ends with 0 when told to."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_vocabularies import smollm2_path

CONFIG = """
[listener]
address = "127.0.0.1:0"

[metrics]
address = "127.0.0.1:0"

[store]
path = "ledger.db"

[backends.nobody]
kind = "openai"
url = "http://127.0.0.1:9/v1"

[models.smollm2]
provider = "huggingface"
context_tokens = 2048
backends = ["nobody"]
counting = "TOKENIZER"
tokenizer = {{ kind = "gguf", path = "{model}" }}

[[rate_cards]]
id = "card-1"
model = "smollm2"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = {{ prompt = 500_000, completion = 2_000_000 }}
"""

METERGATE = [sys.executable, "-m", "metergate"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metergate.toml").write_text(CONFIG.format(model=smollm2_path()))
    return tmp_path


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway that serves, and what it logged until then."""
    with subprocess.Popen([*METERGATE, "serve"], cwd=folder, stderr=subprocess.PIPE, text=True) as gateway:
        assert gateway.stderr is not None
        try:
            lines = []
            for line in gateway.stderr:
                lines.append(line)
                if "serving " in line:
                    break
            yield gateway, "".join(lines)
        finally:
            gateway.kill()


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*METERGATE, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_says_where_it_serves_and_exits_with_0_when_told_to_stop(
    folder: Path, number: signal.Signals
) -> None:
    with serving(folder) as (gateway, log):
        assert re.search(r"serving smollm2 on 127\.0\.0\.1:[1-9]\d*", log)
        gateway.send_signal(number)
        assert gateway.wait(20) == 0
    # The same store serves again.
    with serving(folder) as (_, log):
        assert "serving smollm2" in log


# Told to stop at the instant at which it listens, before it says so.
STOPPED_AS_IT_LISTENS = """
import os, signal, sys
from metergate.app import Gateway
from metergate.cli.main import main

open_gateway = Gateway.open.__func__

async def opened(cls, config):
    gateway = await open_gateway(cls, config)
    os.kill(os.getpid(), signal.SIGTERM)
    return gateway

Gateway.open = classmethod(opened)
sys.argv = ["metergate", "serve"]
main()
"""


def test_a_gateway_told_to_stop_as_soon_as_it_listens_exits_with_0(folder: Path) -> None:
    script = [sys.executable, "-c", STOPPED_AS_IT_LISTENS]
    stopped = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False, timeout=30)
    assert (stopped.returncode, "stopped" in stopped.stderr) == (0, True), stopped.stderr


def test_while_a_gateway_serves_commands_write_through_it_and_another_gateway_is_refused(
    folder: Path, run: Run
) -> None:
    assert run("subscriber", "create", "alice")[0] == 0
    with serving(folder):
        refused = command(folder, "serve")
        assert refused.returncode == 2
        assert "a gateway or another command is writing it; stop it first" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert run("grant", "add", "alice", "--credits", "5")[0] == 0
        assert "5.000000" in run("wallet", "show", "alice")[1]
        code, verified, _ = run("ledger", "verify")
        assert (code, "No differences." in verified) == (0, True)


def test_an_address_in_use_is_refused_by_name(folder: Path) -> None:
    with serving(folder) as (_, log):
        match = re.search(r"127\.0\.0\.1:\d+", log)
        assert match
        other = folder / "other.toml"
        text = (folder / "metergate.toml").read_text()
        other.write_text(text.replace("127.0.0.1:0", match[0]).replace("ledger.db", "other.db"))
        refused = command(folder, "serve", "--config", "other.toml")
    assert refused.returncode == 2
    assert match[0] in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_rate_card_that_was_served_with_other_prices_is_refused(folder: Path) -> None:
    with serving(folder):
        pass
    config = folder / "metergate.toml"
    config.write_text(config.read_text().replace("2_000_000", "3_000_000"))
    refused = command(folder, "serve")
    assert refused.returncode == 2
    assert "The rate card card-1 was served with other prices or times: change it back, and add" in refused.stderr


def test_a_tokenizer_that_cannot_be_read_is_refused_by_name(folder: Path) -> None:
    config = folder / "metergate.toml"
    (folder / "broken.gguf").write_bytes(b"GGUF but no more")
    config.write_text(config.read_text().replace(str(smollm2_path()), "broken.gguf"))
    refused = command(folder, "serve")
    assert refused.returncode == 2
    assert "broken.gguf" in refused.stderr
    assert "Traceback" not in refused.stderr

"""The real model server, started once a session by the first test that asks for it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent.parent / "scripts" / "llama_server.py"
_STOP_SECONDS_MAX = 10.0


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """The base URL of a llama.cpp server with SmolLM2-135M: two slots of 2048 tokens, one thread."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, str(_SCRIPT)], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            # The script gives up by itself when the model does not load; then the line is empty.
            ready, _, url = process.stdout.readline().strip().partition(" ")
            if ready != "ready":
                log.seek(0)
                pytest.fail(f"the model server did not start: {log.read()[-2000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

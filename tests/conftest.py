"""The real model server, started once a session by the first test that asks for it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent.parent / "scripts" / "llama_server.py"
_STOP_SECONDS_MAX = 10.0


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """The base URL of a llama.cpp server with SmolLM2-135M: two slots of 2048 tokens, one thread."""
    with _running() as url:
        yield url


@pytest.fixture(scope="session")
def llama_embeddings() -> Iterator[str]:
    """The base URL of a llama.cpp server that makes vectors with SmolLM2-135M: one slot of 512 tokens, one thread."""
    with _running("--embeddings", "--parallel", "1", "--context", "512") as url:
        yield url


@contextmanager
def _running(*arguments: str) -> Iterator[str]:
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, str(_SCRIPT), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
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

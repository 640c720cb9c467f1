"""The real model server as a process of its own, for tests that start it in another shape, or kill it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import reserved_port

_SCRIPT = Path(__file__).parent.parent / "scripts" / "llama_server.py"
_STOP_SECONDS_MAX = 10.0


class LlamaProcess:
    """A llama.cpp server with SmolLM2-135M; ``url`` is its base."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        with reserved_port() as port:  # while the model is loaded, before it listens
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT), "--port", str(port), *arguments],
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            assert self._process.stdout is not None
            # The script gives up by itself when the model does not load; then the line is empty.
            ready, _, self.url = self._process.stdout.readline().strip().partition(" ")
        if ready != "ready":
            self._log.seek(0)
            problem = self._log.read()[-2000:]
            self.kill()
            raise AssertionError(f"the model server did not start: {problem}")

    def kill(self) -> None:
        """End it without a warning."""
        self._process.kill()
        self._release()

    def stop(self) -> None:
        """Tell it to end; kill it if it does not."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._release()

    def _release(self) -> None:
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


@contextmanager
def llama_process(*arguments: str) -> Iterator[LlamaProcess]:
    """A server that ends with the context; ``arguments`` are those of scripts/llama_server.py."""
    process = LlamaProcess(*arguments)
    try:
        yield process
    finally:
        process.stop()

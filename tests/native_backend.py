"""The reference BackendService server as a process."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "backend_server.py"


@contextmanager
def backend_server(llama_url: str, *arguments: str) -> Iterator[str]:
    """The address of the reference server."""
    command = [sys.executable, str(SCRIPT), "--llama-url", llama_url, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, address = process.stdout.readline().strip().partition(" ")
            assert ready == "ready"
            yield address
        finally:
            process.terminate()
            assert process.wait(10) == 0

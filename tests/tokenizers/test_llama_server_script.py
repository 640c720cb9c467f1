"""The script that serves the real model leaves nothing behind, and says what is wrong."""

import http.client
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "llama_server.py"
COMMAND = [sys.executable, str(SCRIPT), "--parallel", "1"]


def ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    word, _, url = process.stdout.readline().strip().partition(" ")
    assert word == "ready"
    return url


def test_it_serves_and_exits_cleanly_when_told_to() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        try:
            connection = http.client.HTTPConnection(urlsplit(ready_url(process)).netloc, timeout=10)
            connection.request("GET", "/health")
            assert connection.getresponse().status == http.client.OK
            connection.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_it_ends_with_the_process_that_started_it() -> None:
    # A parent that starts the server, passes its first line on, and is then killed.
    parent_code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent_code, *COMMAND], stdout=subprocess.PIPE, text=True) as parent:
        try:
            ready_url(parent)
            parent.kill()
            # Only the server still holds the other end of our pipe: the pipe ends when it does.
            assert parent.stdout is not None
            ended, _, _ = select.select([parent.stdout], [], [], 10)
            assert ended, "the server outlived its parent"
            assert parent.stdout.read() == ""
        finally:
            parent.kill()


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr

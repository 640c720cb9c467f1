"""Runs a command and tells the most memory that it ever had."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.1

# Of what a command that failed said last.
SHOWN_CHARACTERS = 2_000


def watch(command: Sequence[str]) -> float:
    """Its peak of resident memory in megabytes; AssertionError unless it exits with 0. It ends with whoever waits."""
    with tempfile.TemporaryFile("w+") as told:
        # In a group of its own, so that Ctrl-C reaches it once, from here.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True)
        peak_megabytes = _wait(process)
        told.seek(0)
        assert process.returncode == 0, f"{command} exited with {process.returncode}: {told.read()[-SHOWN_CHARACTERS:]}"
    return peak_megabytes


def _wait(process: "subprocess.Popen[bytes]") -> float:
    peak_megabytes = 0.0
    try:
        # Not wait4's figure: a child starts with the peak of the process that started it.
        while process.poll() is None:
            peak_megabytes = max(peak_megabytes, peak_of(process.pid))
            time.sleep(LOOK_SECONDS)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return peak_megabytes


def peak_of(pid: int) -> float:
    """The peak of a process so far in megabytes; 0 of one that ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1_000 if found else 0.0

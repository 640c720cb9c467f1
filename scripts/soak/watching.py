"""Runs a command and tells the most memory that it ever had."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.1


def watch(command: Sequence[str]) -> tuple[int, float]:
    """Its exit code, and its peak of resident memory in megabytes; it ends with whoever waits for it."""
    # In a group of its own, so that Ctrl-C reaches it once, from here.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
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
    return process.returncode, peak_megabytes


def peak_of(pid: int) -> float:
    """The peak of a process so far in megabytes; 0 of one that ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1_000 if found else 0.0

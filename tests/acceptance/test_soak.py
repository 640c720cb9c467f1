"""The soak, told to end in the middle of a proof, leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import processes_in

ROOT = Path(__file__).parents[2]


def gateways_in(folder: Path) -> list[str]:
    return [command for command in processes_in(folder) if "metergate serve" in command]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("lives", [0, 1])
def test_a_soak_that_is_told_to_end_leaves_no_gateway_behind(
    tmp_path: Path, number: signal.Signals, lives: int
) -> None:
    arguments = [sys.executable, "-m", "soak", "--only", "crash", "--steps", "1000"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'tests'}", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as soak:
        try:
            for _ in range(lives):  # until the first gateway was killed: then it is interrupted while it starts another
                while not gateways_in(tmp_path):
                    time.sleep(0.01)
                while gateways_in(tmp_path):
                    time.sleep(0.01)
            while not gateways_in(tmp_path):
                time.sleep(0.01)
            soak.send_signal(number)
            _, problems = soak.communicate()
        finally:
            soak.kill()
    assert soak.returncode == 130, problems
    assert "Traceback" not in problems
    assert processes_in(tmp_path) == []

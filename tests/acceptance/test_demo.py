"""The demo, as a person runs it: it shows the main job on the real model, and leaves nothing running."""

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import processes_in

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


@pytest.mark.timeout(180)
def test_the_demo_streams_cuts_refuses_verifies_and_exits_with_0(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in ("CREDIT_EXHAUSTED", "INSUFFICIENT_CREDIT", "No differences.", "counted by TOKENIZER"):
        assert shown in done.stdout
    assert processes_in(tmp_path) == []


def refused(folder: Path) -> str:
    """What a demo says that ends at once because it cannot have its folder."""
    done = subprocess.run(
        [sys.executable, str(DEMO), "--folder", str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    return " ".join(done.stdout.split())


def test_a_demo_does_not_empty_the_folder_of_another_that_runs(tmp_path: Path) -> None:
    with (tmp_path / "demo.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "is in use" in refused(tmp_path)


def test_a_demo_does_not_empty_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    assert "are not this script's" in refused(tmp_path)
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    arguments = [sys.executable, "-u", str(DEMO), "--folder", str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if line.startswith("prompt "):
                break
        else:
            pytest.fail(f"it ended by itself: {said}")
        demo.send_signal(signal.SIGSTOP)  # or on a busy machine it has ended before it is looked at
        running = processes_in(tmp_path)
        assert any("metergate" in command for command in running)
        assert any("llama_server" in command for command in running)
        demo.send_signal(number)
        demo.send_signal(signal.SIGCONT)
        demo.stdout.read()
        assert demo.wait() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while processes_in(tmp_path):  # after SIGKILL the kernel ends them; the test's time limit ends the wait
        time.sleep(0.05)

"""The processes of a bench: a backend, the pass-through before it, and a gateway before it. Each dies with this one."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_setup import TETHER, free_port

SCRIPTS = Path(__file__).resolve().parent.parent
MODEL = "bench"
CREDITS = "1000000"  # more than all rounds together can cost
READY_SECONDS_MAX = 60.0  # a gateway starts in about 2 s; a busy machine may need much longer
STOP_SECONDS_MAX = 30.0  # it drains for at most 20 s
ANY_ADDRESS = r"127\.0\.0\.1:[1-9]\d*"

# Of a process, as it is part of such a clock's number.
_SCHEDULER_CLOCK = 2

CONFIG = """\
[listener]
address = "{address}"

[metrics]
address = "127.0.0.1:0"

[store]
path = "ledger.db"

[backends.local]
kind = "grpc"
address = "{backend}"

[models.{model}]
provider = "bench"
context_tokens = 200000
backends = ["local"]
counting = "TOKENIZER"
tokenizer = {{ kind = "tiktoken", path = "{vocabulary}", pattern = "o200k_base", prompt_rule = "openai" }}

[[rate_cards]]
id = "{model}-1"
model = "{model}"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = {{ prompt = 2_000_000, completion = 8_000_000 }}
"""


class NotReady(Exception):
    """A process ended, or said nothing, instead of serving."""


@dataclass(frozen=True, slots=True)
class Served:
    """A process that serves."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, user and system, by the kernel's clock of the process.

        In nanoseconds; ``/proc/PID/stat`` has hundredths of a second, in which a short round costs nothing.
        """
        clock = (~self.pid << 3) | _SCHEDULER_CLOCK  # as clock_getcpuclockid(3) makes it
        return time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class World:
    """What is measured, and the key to it."""

    gateway: Served
    pass_through: Served
    key: str


def package_file(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported; NotReady without the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise NotReady(f"the package {package} is not installed: make install")
    return Path(spec.origin).parent / name


@contextlib.contextmanager
def running(folder: Path) -> Iterator[World]:
    """Start everything in an empty folder; stop it at the end."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(_process(folder, "backend", ANY_ADDRESS, "-m", "bench.backend"))
        pass_through = stack.enter_context(_process(folder, "proxy", ANY_ADDRESS, "-m", "bench.proxy", backend.address))
        config = folder / "metergate.toml"
        vocabulary = package_file("bpe_openai", "data/o200k_base.tiktoken.gz")
        address = f"127.0.0.1:{free_port()}"
        config.write_text(CONFIG.format(address=address, backend=backend.address, model=MODEL, vocabulary=vocabulary))
        _metergate(folder, "subscriber", "create", "bench")
        _metergate(folder, "grant", "add", "bench", "--credits", CREDITS, "--source", "TOP_UP")
        key = _metergate(folder, "key", "issue", "bench")
        gateway = stack.enter_context(_process(folder, "gateway", re.escape(address), "-m", "metergate", "serve"))
        yield World(gateway=gateway, pass_through=pass_through, key=key)


def _environment() -> dict[str, str]:
    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _metergate(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "metergate", *arguments],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotReady(f"metergate {' '.join(arguments)} exited with {done.returncode}: {done.stderr}")
    return done.stdout.strip()


@contextlib.contextmanager
def _process(folder: Path, name: str, address: str, *arguments: str) -> Iterator[Served]:
    """Run ``python ARGUMENTS`` until the end of the block; it serves once it printed what the pattern matches."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", TETHER, sys.executable, *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C reaches the bench only, which then stops the others
        )
    try:
        yield Served(_printed(process, log, address), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _printed(process: "subprocess.Popen[bytes]", log: Path, address: str) -> str:
    """The address that a process printed when it was ready."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        said = re.search(address, text)
        if said is not None:
            return said.group()
        if process.poll() is not None:
            raise NotReady(f"{log.name} ended with {process.returncode}:\n{text}")
        time.sleep(0.05)
    raise NotReady(f"{log.name} did not say within {READY_SECONDS_MAX:.0f} s where it listens")

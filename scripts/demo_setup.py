"""What the demo and ``make run`` share: a real model's server, a store with subscribers and keys, and a gateway.

No process outlives this one: each dies with it, however it ends.
"""

import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from llama_server import CONTEXT_TOKENS, MODEL_ALIAS, model_path
from rich.console import Console

SCRIPTS = Path(__file__).resolve().parent
MARKER = ".written-by-metergate-demo"  # a folder with this file in it may be emptied
FOLDER = SCRIPTS.parent / ".demo"  # where the files go unless another folder is named

# 5 yuan a month buys 5 credits: with one credit a yuan, prices read as they do in the market's lists.
PLAN_CREDITS = "5"

READY_SECONDS_MAX = 120.0  # loading takes 2 s on a quiet machine; a busy one may need much longer
STOP_SECONDS_MAX = 30.0  # the gateway drains for at most 20 s
LOG_LINES_SHOWN = 30  # enough for a traceback

CONFIG = """\
# Written by scripts/demo.py: all that a gateway needs.
[listener]
address = "{address}"

[metrics]
address = "{metrics_address}"

[store]
path = "ledger.db"

[backends.llama]
kind = "openai"
url = "{backend_url}/v1"

[models.{model}]
display_name = "SmolLM2 135M Instruct"
provider = "huggingface"
context_tokens = {context_tokens}
backends = ["llama"]
counting = "TOKENIZER"
tokenizer = {{ kind = "gguf", path = "{model_path}" }}

[[rate_cards]]
id = "{model}-1"
model = "{model}"
effective_time = 2026-01-01T00:00:00+08:00
# Credits a million tokens: 0.5 of prompt, 0.1 of prompt that the backend had cached, 2 of answer.
microcredits_per_million_tokens = {{ prompt = 500_000, cached_prompt = 100_000, completion = 2_000_000 }}
"""

# Ends the command with its parent, also when that is killed: the kernel sends the signal.
TETHER = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"  # PR_SET_PDEATHSIG, SIGTERM
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Surprise(Exception):
    """Something that should not happen here."""


_kept: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody listens on, and that no process is given by chance until this one ends."""
    kept = socket.socket()
    _kept.append(kept)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # each server sets the one or the other
        kept.setsockopt(socket.SOL_SOCKET, option, 1)
    kept.bind(("127.0.0.1", 0))
    return int(kept.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether the port can be listened on."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_ok(address: str, path: str) -> bool:
    """Whether a health check over HTTP says so."""
    connection = http.client.HTTPConnection(address, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _take(folder: Path) -> IO[bytes]:
    """Empty a folder that is ours; the lock on it, which is held until it is closed or this process ends.

    Surprise if another run uses the folder, or if it has files that no run of this script wrote.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("ab")  # beside the folder, which is removed
    except OSError as error:
        raise Surprise(f"{folder} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        marker = folder / MARKER
        if folder.exists() and not marker.exists() and any(folder.iterdir()):
            raise Surprise(f"{folder} has files that are not this script's: remove it, or name another --folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        marker.touch()
    except BlockingIOError:
        lock.close()
        raise Surprise(f"{folder} is in use: stop the other run, or name another --folder") from None
    except OSError as error:
        lock.close()
        raise Surprise(f"{folder} cannot be used: {error}") from error
    except Surprise:
        lock.close()
        raise
    return lock


class Setup:
    """The processes and files of one run, in a folder that begins empty and that no other run may use meanwhile.

    Surprise if the folder cannot be had.
    """

    model = MODEL_ALIAS

    def __init__(self, folder: Path, port: int, metrics_port: int, console: Console) -> None:
        self.folder = folder.resolve()
        self.address = f"127.0.0.1:{port}"
        self.metrics_address = f"127.0.0.1:{metrics_port}"
        self._console = console
        self._backend_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = _take(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lock.close()

    # --- the backend ------------------------------------------------------------------------------------------------

    def start_backend(self) -> None:
        """Load the model into llama.cpp and wait until it serves."""
        arguments = [str(SCRIPTS / "llama_server.py"), "--port", str(self._backend_port), "--verbose"]
        self._start("llama", arguments)
        self._wait_for("llama", f"127.0.0.1:{self._backend_port}", "/health")

    # --- the gateway ------------------------------------------------------------------------------------------------

    def write_config(self) -> Path:
        """Write the configuration file."""
        file = self.folder / "metergate.toml"
        text = CONFIG.format(
            address=self.address,
            metrics_address=self.metrics_address,
            backend_url=f"http://127.0.0.1:{self._backend_port}",
            model=self.model,
            model_path=model_path(),
            context_tokens=CONTEXT_TOKENS,
        )
        file.write_text(text)
        return file

    def command(self, *arguments: str) -> str:
        """Say and run ``metergate ...`` in the folder; its output. Surprise unless it exits with 0."""
        return self._run(arguments, subprocess.PIPE, subprocess.PIPE).strip("\n")

    def show(self, *arguments: str) -> None:
        """The same; what it prints is shown as it prints it: a command sees for itself how wide the terminal is."""
        self._run(arguments, None, None)

    def _run(self, arguments: tuple[str, ...], stdout: int | None, stderr: int | None) -> str:
        self._console.print(f"[bold]$ metergate {' '.join(arguments)}", highlight=False, soft_wrap=True)
        sys.stdout.flush()
        command = [sys.executable, "-m", "metergate", *arguments]
        done = subprocess.run(command, cwd=self.folder, stdout=stdout, stderr=stderr, text=True, check=False)
        if done.returncode != 0:
            output = f"{done.stderr or ''}{done.stdout or ''}"
            raise Surprise(f"metergate {' '.join(arguments)} exited with {done.returncode}:\n{output}")
        return done.stdout or ""

    def add_subscriber(self, subscriber: str, credits_granted: str) -> str:
        """Open a wallet with the plan's grant; the key of an app that may spend it."""
        self.command("subscriber", "create", subscriber)
        plan = ("--credits", credits_granted, "--source", "PLAN_CYCLE", "--expires-in", "31d", "--id", "cycle-1")
        self.command("grant", "add", subscriber, *plan)
        key = self.command("key", "issue", subscriber, "--app", "writer", "--channel", "APP")
        file = self.folder / f"{subscriber}.key"
        file.touch(mode=0o600)
        file.write_text(f"{key}\n")
        return key

    def start_gateway(self) -> None:
        """Serve, and wait until the gateway says that it does."""
        self._console.print("[bold]$ metergate serve", highlight=False)
        self._start("gateway", ["-m", "metergate", "serve"])
        self._wait_for("gateway", self.metrics_address, "/readyz")

    def stop_gateway(self) -> None:
        """Ask it to stop; Surprise unless it exits with 0."""
        gateway = self._processes["gateway"]
        gateway.send_signal(signal.SIGTERM)
        code = gateway.wait(STOP_SECONDS_MAX)
        if code != 0:
            raise Surprise(f"the gateway exited with {code}")

    def wait_for_gateway(self) -> None:
        """Wait until it ends by itself, which is a Surprise."""
        code = self._processes["gateway"].wait()
        raise Surprise(f"the gateway exited with {code}")

    # --- processes --------------------------------------------------------------------------------------------------

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _start(self, name: str, arguments: list[str]) -> None:
        log: IO[bytes]
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", TETHER, sys.executable, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches this process only, which then stops the others in order.
                process_group=0,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def _wait_for(self, name: str, address: str, path: str) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not is_ok(address, path):
            code = self._processes[name].poll()
            if code is not None:
                raise Surprise(f"{name} exited with {code} before it was ready")
            if time.monotonic() > deadline:
                raise Surprise(f"{name} was not ready after {READY_SECONDS_MAX:.0f} s")
            time.sleep(0.1)

    def log_tails(self) -> str:
        """The last lines that each process wrote."""
        tails = []
        for name in self._processes:
            lines = self._log(name).read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            tails += [f"--- {self._log(name)}", *lines]
        return "\n".join(tails)

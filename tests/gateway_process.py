"""A gateway as an operator runs it: a configuration file, a store set up beforehand, and ``metergate serve``."""

import asyncio
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from real_vocabularies import smollm2_path

from metergate.cli.main import main
from metergate.clock import SystemClock
from metergate.core.inference import Message, Prompt, Role
from metergate.core.keys import format_key, hash_key
from metergate.core.operations import AddAuthorization, AddGrant, AddSubscriber
from metergate.core.rating import RateCard, rate_ceil
from metergate.core.rows import ApiKey, Authorization, Channel, Grant, GrantSource, Wallet, WalletState
from metergate.core.usage import TokenClass, Usage
from metergate.ports import Tokenizer
from metergate.stores.sqlite import SqliteLedgerStore
from metergate.tokenizers.open import TokenizerSpec, open_tokenizer

METERGATE = (sys.executable, "-m", "metergate")

# Starting takes a second; a machine that runs other tests may need much longer.
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0

# 2.5 microcredits a prompt token and 7.3 a completion token: every rounding shows.
PROMPT_PRICE, COMPLETION_PRICE = 2_500_000, 7_300_000

CARD = RateCard(
    rate_card_id="card-1",
    model_id="smollm2",
    effective_time_us=0,
    expire_time_us=None,
    prices=((TokenClass.PROMPT, PROMPT_PRICE), (TokenClass.COMPLETION, COMPLETION_PRICE)),
)

NO_OTHERS: Mapping[str, str] = MappingProxyType({})

CONFIG = """
[listener]
address = "127.0.0.1:0"

[store]
path = "ledger.db"

[metrics]
address = "127.0.0.1:0"

[limits]
{limits}

[backends.only]
{backend}

[models.smollm2]
provider = "huggingface"
context_tokens = 2048
backends = ["only"]
backend_models = {{ only = "smollm2-135m" }}
counting = "{counting}"
tokenizer = {{ kind = "gguf", path = "{tokenizer}" }}

[[rate_cards]]
id = "card-1"
model = "smollm2"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = {{ prompt = {prompt_price}, completion = {completion_price} }}
"""


EMBEDDING_CONFIG = """
[store]
path = "ledger.db"

[listener]
address = "127.0.0.1:0"

[metrics]
address = "127.0.0.1:0"

[backends.only]
{backend}

[models.vectors]
provider = "huggingface"
task = "embedding"
dimensions = 576
context_tokens = 512
backends = ["only"]
backend_models = {{ only = "smollm2-135m" }}
counting = "TOKENIZER"
tokenizer = {{ kind = "gguf", path = "{tokenizer}" }}

[[rate_cards]]
id = "card-1"
model = "vectors"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = {{ prompt = {prompt_price} }}
"""


def write_embedding_config(folder: Path, backend: str) -> Path:
    """Write a configuration with one model that makes vectors, and one backend."""
    path = folder / "metergate.toml"
    path.write_text(EMBEDDING_CONFIG.format(backend=backend, tokenizer=smollm2_path(), prompt_price=PROMPT_PRICE))
    return path


@cache
def smollm2() -> Tokenizer:
    """The counting rule of the model, for the test's own count."""
    return open_tokenizer(
        TokenizerSpec(kind="gguf", path=smollm2_path(), pattern=None, prompt_rule="template", chat_template_path=None)
    )


def count_prompt(text: str) -> int:
    """Tokens of a prompt of one user's message, through the model's chat template."""
    return smollm2().count_prompt(Prompt(messages=(Message(role=Role.USER, parts=(text,)),)))


def cost(prompt_tokens: int, text: str) -> int:
    """What a prompt and an answer cost, by the test's own count of the whole text."""
    completion_tokens = smollm2().count_text(text)
    return rate_ceil(Usage.of({TokenClass.PROMPT: prompt_tokens, TokenClass.COMPLETION: completion_tokens}), CARD)


def openai_backend(url: str, *, http_version: str = "1.1") -> str:
    """The table of an OpenAI-compatible backend."""
    return f'kind = "openai"\nurl = "{url}"\nhttp_version = "{http_version}"'


def write_config(
    folder: Path, backend: str, *, others: Mapping[str, str] = NO_OTHERS, counting: str = "TOKENIZER", **limits: float
) -> Path:
    """Write a configuration with one model; ``limits`` are those that are not the default.

    The model runs on the backend ``only``, and on ``others``, by id.
    """
    path = folder / "metergate.toml"
    tables = "".join(f"\n[backends.{backend_id}]\n{table}\n" for backend_id, table in others.items())
    names = ", ".join(f'"{backend_id}"' for backend_id in ("only", *others))
    path.write_text(
        tables
        + CONFIG.replace('["only"]', f"[{names}]").format(
            backend=backend,
            counting=counting,
            limits="\n".join(f"{name} = {value}" for name, value in limits.items()),
            tokenizer=smollm2_path(),
            prompt_price=PROMPT_PRICE,
            completion_price=COMPLETION_PRICE,
        )
    )
    return path


async def open_wallets(store: Path, wallets: dict[str, int]) -> dict[str, str]:
    """Create a store with a wallet of so many microcredits for each subscriber; return their own keys."""
    clock = SystemClock()
    ledger = await SqliteLedgerStore.open(store, clock=clock, owner_id="test", create=True)
    keys = {subscriber_id: format_key(os.urandom(32)) for subscriber_id in wallets}
    for subscriber_id, microcredits in wallets.items():
        await _open_wallet(ledger, subscriber_id, microcredits, keys[subscriber_id], clock.now_us())
    await ledger.close()
    return keys


async def _open_wallet(ledger: SqliteLedgerStore, subscriber_id: str, microcredits: int, key: str, now_us: int) -> None:
    wallet = Wallet(subscriber_id=subscriber_id, state=WalletState.ACTIVE, sequence=0, create_time_us=now_us)
    await ledger.add_subscriber(AddSubscriber(wallet=wallet))
    grant = Grant(
        grant_id="first",
        subscriber_id=subscriber_id,
        source=GrantSource.TOP_UP,
        priority=0,
        amount_microcredits=microcredits,
        remaining_microcredits=microcredits,
        effective_time_us=now_us,
        expire_time_us=None,
        create_time_us=now_us,
    )
    await ledger.add_grant(AddGrant(grant=grant))
    authorization = Authorization(
        authorization_id=f"{subscriber_id}-own",
        subscriber_id=subscriber_id,
        app_id="",
        channel=Channel.APP,
        cap_microcredits=None,
        allowed_models=(),
        charged_microcredits=0,
        reserved_microcredits=0,
        create_time_us=now_us,
        revoke_time_us=None,
    )
    await ledger.add_authorization(AddAuthorization(authorization=authorization))
    await ledger.add_key(
        ApiKey(
            key_id=f"{subscriber_id}-key",
            secret_hash=hash_key(key),
            authorization_id=authorization.authorization_id,
            create_time_us=now_us,
            revoke_time_us=None,
        )
    )


def metergate(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*METERGATE, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=START_SECONDS_MAX
    )


def command_here(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command on a thread of this process: its exit code, stdout and stderr.

    A process of its own would work for a second until it begins.
    """
    out, err = io.StringIO(), io.StringIO()
    with ThreadPoolExecutor(max_workers=1) as thread, redirect_stdout(out), redirect_stderr(err):
        code = thread.submit(_exit_code, *arguments, "--config", str(folder / "metergate.toml")).result()
    return code, out.getvalue(), err.getvalue()


def _exit_code(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def verify(folder: Path) -> None:
    """Assert that ``metergate ledger verify`` finds no difference."""
    code, out, err = command_here(folder, "ledger", "verify")
    assert code == 0, out + err
    assert "No differences." in out


@dataclass(frozen=True)
class Books:
    """A store, read from outside at the instant of each call."""

    store: Path

    def captured_microcredits(self, reservation_name: str) -> int:
        """What is durably captured of a reservation, by the name that its admission gave."""
        reservation_id = reservation_name.rpartition("/")[2]
        sql = "SELECT captured_microcredits FROM reservations WHERE reservation_id = ?"
        return int(self._rows(sql, reservation_id)[0][0])

    def charges(self) -> dict[str, tuple[int, str]]:
        """What each request was charged, and its close cause."""
        rows = self._rows("SELECT request_id, charged_microcredits, close_cause FROM charges")
        return {str(row[0]): (int(row[1]), str(row[2])) for row in rows}

    def delivered(self) -> dict[str, int]:
        """What of each request's charge is known to have been delivered."""
        rows = self._rows("SELECT request_id, delivered_microcredits FROM charges")
        return {str(row[0]): int(row[1]) for row in rows}

    def attempts(self, request_id: str) -> list[str]:
        """The backends that a charged request was sent to."""
        [(attempts,)] = self._rows("SELECT attempts FROM charges WHERE request_id = ?", request_id)
        return [str(attempt[0]) for attempt in json.loads(attempts)]

    def open_reservations(self) -> int:
        """How many reservations are not closed."""
        return int(self._rows("SELECT count(*) FROM reservations WHERE state = 'ACTIVE'")[0][0])

    def reservations(self) -> int:
        """How many reservations there ever were."""
        return int(self._rows("SELECT count(*) FROM reservations")[0][0])

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()


@dataclass
class GatewayProcess:
    """``metergate serve`` in a folder with its configuration, in a process group of its own."""

    folder: Path
    port: int = 0
    metrics_port: int = 0
    _lines: list[str] = field(default_factory=list)
    _process: "subprocess.Popen[str] | None" = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None
    # A run that is interrupted leaves threads behind that start and kill: after its end, none starts another process.
    _changing: threading.RLock = field(default_factory=threading.RLock)
    _is_over: bool = False

    @property
    def books(self) -> Books:
        """Its store, read from outside."""
        return Books(self.folder / "ledger.db")

    @property
    def process(self) -> "subprocess.Popen[str]":
        """The running process."""
        assert self._process is not None
        return self._process

    def start(self) -> Self:
        """Start it and wait until it says where it serves."""
        with self._changing:
            assert not self._is_over, "the run that started it is over"
            self._ready.clear()
            self._process = subprocess.Popen(
                [*METERGATE, "serve"],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        assert self._ready.wait(START_SECONDS_MAX), self.log()
        assert self.port, self.log()
        return self

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.port = 0
        for line in process.stdout:
            self._lines.append(line)
            watched = re.search(r"metrics on http://\S+:(\d+)/metrics", line)
            if watched is not None:
                self.metrics_port = int(watched[1])
            served = re.search(r"serving .* on \S+:(\d+) ", line)
            if served is not None:
                self.port = int(served[1])
                self._ready.set()
        self._ready.set()

    def log(self) -> str:
        """The tail of what it wrote."""
        return "".join(self._lines[-40:])

    def lines(self) -> list[str]:
        """All that it wrote, to stdout and stderr, so far."""
        return list(self._lines)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(STOP_SECONDS_MAX)
        assert self._reader is not None
        self._reader.join(STOP_SECONDS_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._process = None
        return code

    def stop(self) -> None:
        """Tell it to stop; it must exit with 0 and have said nothing of a defect."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, self.log()
        assert "Traceback" not in "".join(self._lines), self.log()

    def kill(self) -> None:
        """End it without a warning, as a crash does."""
        with self._changing:
            self.signal(signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._is_over = True
            if self._process is None:
                return
            if kind is None:
                try:
                    self.stop()
                    return
                finally:
                    if self._process is not None:
                        self.kill()
            self.kill()
            if kind is not asyncio.CancelledError:
                sys.stderr.write(self.log())

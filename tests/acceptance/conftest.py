"""What acceptance tests share: gateways in this process open fast, because the vocabulary is read once."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import pytest
from ports import reserved_port

from metergate import offerings
from metergate.cli.main import main
from metergate.tokenizers.open import open_tokenizer

Run = Callable[..., Awaitable[tuple[int, str, str]]]

_open_tokenizer_once = cache(open_tokenizer)


@pytest.fixture(autouse=True)
def _vocabulary_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offerings, "open_tokenizer", _open_tokenizer_once)


@pytest.fixture
def backend_port() -> Iterator[int]:
    """For a backend that goes away and comes back."""
    with reserved_port() as port:
        yield port


@pytest.fixture
def busy_slots(llama_server: str) -> Callable[[], int]:
    """How many of the real model's slots generate, asked each time it is called."""

    def count() -> int:
        with urlopen(f"{llama_server}/slots", timeout=5) as response:
            return sum(bool(slot["is_processing"]) for slot in json.load(response))

    return count


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command beside the gateway: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_here(arguments: tuple[str, ...]) -> int:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return int(caught.value.code or 0)

    async def run_command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = await asyncio.to_thread(run_here, arguments)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_command

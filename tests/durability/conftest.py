"""Where these tests keep their ledgers, and ledgers that checkpoint often."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metergate.stores.sqlite import connection


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """In memory where there is such a place: here syncs are counted, not waited for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture(autouse=True)
def _checkpoints_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHECKPOINT_PAGES", 30)

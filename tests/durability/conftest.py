"""Ledgers that checkpoint often, in a folder that is fast."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durability import workplace
from durability.disk import CannotWatch, watched
from metergate.stores.sqlite import connection


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    with workplace.fast_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def _checkpoints_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHECKPOINT_PAGES", workplace.CHECKPOINT_PAGES)


@pytest.fixture(autouse=True, scope="session")
def _sqlite_can_be_watched() -> None:
    try:
        with watched(Path("/nowhere")):
            pass
    except CannotWatch:
        pytest.skip("this Python's sqlite3 has SQLite linked in: its files cannot be watched from outside")

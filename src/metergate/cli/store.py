"""The store, opened for one command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from metergate.app import SystemClock
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore

clock = SystemClock()


@asynccontextmanager
async def writing(path: Path, *, create: bool = False) -> AsyncIterator[SqliteLedgerStore]:
    """The store under its lock; StoreRefused while a gateway serves it."""
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id=f"command-{uuid4().hex}", create=create)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def reading(path: Path) -> AsyncIterator[SqliteLedgerReader]:
    """The store read-only; a gateway may be writing meanwhile."""
    store = await SqliteLedgerReader.open_read_only(path)
    try:
        yield store
    finally:
        await store.close()

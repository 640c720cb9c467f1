"""A whole gateway in this process: its own store, listener and backends; its books are audited when it closes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from app_client import App
from gateway_process import NO_OTHERS, Books, open_wallets, write_config
from ledger_rows import differences

from metergate.app import Gateway
from metergate.config import load_config
from metergate.stores.sqlite import SqliteLedgerReader

SUBSCRIBER = "alice"


@asynccontextmanager
async def open_gateway(
    folder: Path,
    backend: str,
    *,
    others: Mapping[str, str] = NO_OTHERS,
    microcredits: int = 10_000_000,
    limits: Mapping[str, float] | None = None,
    counting: str = "TOKENIZER",
) -> AsyncIterator[tuple[App, Books]]:
    """An app of a subscriber with so much credit, and the books; afterwards nothing is open and nothing differs.

    ``others``: tables of further backends of the model, by id.
    """
    books = Books(folder / "ledger.db")
    keys = await open_wallets(books.store, {SUBSCRIBER: microcredits})
    async with await Gateway.open(
        load_config(write_config(folder, backend, others=others, counting=counting, **(limits or {})))
    ) as gateway:
        async with App(gateway.port, keys[SUBSCRIBER]) as app:
            yield app, books
        await gateway.drain()
    assert books.open_reservations() == 0
    await audit(books.store)


async def audit(store: Path) -> None:
    """Assert that the books of a store add up."""
    reader = await SqliteLedgerReader.open_read_only(store)
    try:
        assert await differences(reader) == []
    finally:
        await reader.close()

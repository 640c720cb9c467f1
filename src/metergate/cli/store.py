"""The store, opened for one command: by itself, or through the gateway that serves it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

from metergate.clock import SystemClock
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    EraseSubscriber,
    Refund,
    Reverse,
    SetWalletState,
)
from metergate.core.rows import ApiKey, Authorization, Correction, Erasure, Grant, Wallet
from metergate.edges.admin_client import serving_gateway
from metergate.edges.admin_socket import admin_socket_path
from metergate.ports import Page
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore

Answer = TypeVar("Answer")

clock = SystemClock()


class WritableLedger(Protocol):
    """What commands do to a ledger: as ``LedgerStore``'s verbs of the same name."""

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        """Open a wallet."""
        ...

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        """Forget a subscriber."""
        ...

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        ...

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        ...

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash."""
        ...

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key."""
        ...

    async def revoke_authorization(self, authorization_id: str, now_us: int) -> int:
        """Revoke an authorization with all its keys."""
        ...

    async def refund(self, operation: Refund) -> Correction:
        """Give back part of a charge."""
        ...

    async def adjust(self, operation: Adjust) -> Correction:
        """Give credit, or take what is available."""
        ...

    async def reverse(self, operation: Reverse) -> Correction:
        """Take back a grant whose payment was taken back."""
        ...

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        """Stop a wallet, or let it be spent from again."""
        ...

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        ...


def write(path: Path, verb: Callable[[WritableLedger], Awaitable[Answer]], *, create: bool = False) -> Answer:
    """Do one thing to the ledger, opened as ``writing`` does."""

    async def ask() -> Answer:
        async with writing(path, create=create) as ledger:
            return await verb(ledger)

    return asyncio.run(ask())


@asynccontextmanager
async def writing(path: Path, *, create: bool = False) -> AsyncIterator[WritableLedger]:
    """The ledger: through the gateway that serves the store, or, if none does, the store itself under its lock.

    StoreRefused while another command writes it.
    """
    admin_socket = admin_socket_path(path)
    if _is_listening(admin_socket):
        async with reading(path) as reader, serving_gateway(admin_socket, reader) as gateway:
            yield gateway
        return
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


def _is_listening(path: Path) -> bool:
    """Whether a living gateway has made this socket; a dead one's refuses connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True

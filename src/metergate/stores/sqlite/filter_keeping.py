"""Makes the writer's request filter whole beside the gateway's work, and stores it now and then.

What is settled meanwhile the writer adds itself, before its commit. So the filter is whole once every charge was read
that the file had at some time after the writer was opened.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from metergate.core.errors import MetergateError
from metergate.stores.sqlite.request_filter import RequestFilter
from metergate.stores.sqlite.stored_filter import (
    CHARGE_LAST,
    CHARGES_AFTER,
    ChunkUnusable,
    StoredChunk,
    read_chunk,
)
from metergate.stores.sqlite.write_operations import SetUp

logger = logging.getLogger(__name__)

# How often it is asked whether the filter is to be stored, and tried again to read what could not be read.
LOOK_SECONDS = 30.0

# Charges that are read and added at once: a millisecond in which no other read of the ledger goes on.
PIECE_CHARGES = 256

# Of the time that a piece took, before the next: a quarter of a processor's time, so that requests hardly notice.
PAUSE_FACTOR = 3

# It is stored when so many charges, and this part of all, are not covered: what a start has to read is bounded, and
# so is what is written of it for a charge.
UNCOVERED_CHARGES_MIN = 50_000
UNCOVERED_PART = 20

# Between two chunks, for captures.
CHUNK_PAUSE_SECONDS = 0.05

TOLD_EVERY_SECONDS = 10.0

# Below it, of 30 new requests one and more is looked for in vain.
BITS_A_CHARGE_MIN = 8
TOO_SMALL = "raise [store] request_filter_mebibytes"

Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]
Write = Callable[[SetUp], Awaitable[object]]


class FilterKeeping:
    """Of one filter. ``read`` and ``write`` call a function on a connection to the ledger, in a thread."""

    def __init__(self, path: Path, filter_: RequestFilter, content_key: bytes, *, read: Read, write: Write) -> None:
        self._path = path
        self._filter = filter_
        self._key = content_key
        self._read = read
        self._write = write
        self._stored_charge_number: int | None = None  # what is stored covers the charges up to it; None: not read yet
        self._position = 0  # all charges up to it are in the filter

    async def run(self) -> NoReturn:
        """Until it is cancelled. What the store does not do now is done later; until then requests' places are read."""
        while True:
            try:
                if not self._filter.is_whole:
                    await self.fill()
                await self.store_if_due()
            except MetergateError as exc:
                logger.warning("the request filter of %s is put off: %s", self._path, exc)
            except Exception as exc:
                logger.error("keeping the request filter of %s failed", self._path, exc_info=exc)
            await asyncio.sleep(LOOK_SECONDS)

    async def fill(self) -> None:
        """Read what is stored, then the charges that this does not cover."""
        if self._stored_charge_number is None:
            self._position = self._stored_charge_number = await self._read_stored()
        began = told = time.monotonic()
        while (seconds := await self._read(self._add_piece)) is not None:
            await asyncio.sleep(seconds * PAUSE_FACTOR)
            if time.monotonic() - told > TOLD_EVERY_SECONDS:
                told = time.monotonic()
                logger.info("the request filter of %s has %d charges so far", self._path, self._position)
        self._filter.is_whole = True
        if told != began:
            seconds = time.monotonic() - began
            logger.info("the request filter of %s is whole: %d charges, %.0f s", self._path, self._position, seconds)
        if self._position * BITS_A_CHARGE_MIN > self._filter.bits:
            logger.warning("the request filter of %s is small for its charges: %s", self._path, TOO_SMALL)

    async def _read_stored(self) -> int:
        """Until which charge what is stored covers all; 0 if it cannot be used."""
        covers: list[int] = []
        for number in range(self._filter.chunks):
            try:
                covered = await self._read(partial(read_chunk, filter_=self._filter, number=number, key=self._key))
            except ChunkUnusable as exc:
                logger.warning("the stored request filter of %s is made anew: %s", self._path, exc)
                return 0
            if covered is None:
                return 0
            covers.append(covered)
        return min(covers)

    def _add_piece(self, connection: sqlite3.Connection) -> float | None:
        """Add the next charges; how long it took, or None if there are none."""
        began = time.monotonic()
        rows = connection.execute(CHARGES_AFTER, (self._position, PIECE_CHARGES)).fetchall()
        if not rows:
            return None
        self._filter.add(request for _, *request in rows)
        self._position = rows[-1][0]
        return time.monotonic() - began

    async def store_if_due(self) -> None:
        """Store the filter if it is whole, and what is stored covers too little."""
        if not self._filter.is_whole:
            return
        (last,) = await self._read(lambda connection: connection.execute(CHARGE_LAST).fetchone())
        uncovered = last - (self._stored_charge_number or 0)
        if uncovered > max(UNCOVERED_CHARGES_MIN, last // UNCOVERED_PART):
            await self.store()

    async def store(self) -> None:
        """Write every chunk of a whole filter, each in a transaction of its own."""
        # What is committed, the writer had added before.
        (last,) = await self._read(lambda connection: connection.execute(CHARGE_LAST).fetchone())
        for number in range(self._filter.chunks):
            chunk = await asyncio.to_thread(StoredChunk.of, self._filter, number, last, self._key)
            await self._write(SetUp(chunk.write))
            await asyncio.sleep(CHUNK_PAUSE_SECONDS)
        self._stored_charge_number = last

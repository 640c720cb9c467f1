"""The request filter in the ledger's file: each chunk with the charges that it covers, written one at a time.

A filter is as good as its oldest chunk. Bits are only ever set, so a chunk that was written later than another does no
harm, and a filter of which a crash left half written covers what it covered before.
"""

import hashlib
import sqlite3
import sys
import zlib
from dataclasses import dataclass
from typing import Self

from metergate.stores.sqlite.request_filter import CHUNK_BYTES, RequestFilter

# Young filters are nearly empty, and shrink to a twentieth; harder compression takes longer and saves little.
COMPRESSION = 1

CHUNK = "SELECT chunks, covers_charge_number, bits, seal FROM request_filter WHERE chunk_number = ?"
WRITE_CHUNK = """
    INSERT OR REPLACE INTO request_filter (chunk_number, chunks, covers_charge_number, bits, seal)
    VALUES (?, ?, ?, ?, ?)
"""
DELETE_CHUNKS_BEYOND = "DELETE FROM request_filter WHERE chunk_number >= ?"
CHARGE_LAST = "SELECT coalesce(max(charge_number), 0) FROM charges"
CHARGES_AFTER = """
    SELECT charge_number, subscriber_id, authorization_id, request_id FROM charges
    WHERE charge_number > ? ORDER BY charge_number LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A row of the table."""

    number: int
    chunks: int
    covers_charge_number: int
    bits: bytes
    seal: bytes

    @classmethod
    def of(cls, filter_: RequestFilter, number: int, covers_charge_number: int, key: bytes) -> Self:
        """A chunk as it is now. All charges up to that one must be in the filter."""
        bits = zlib.compress(filter_.chunk(number), COMPRESSION)
        seal = _seal(key, number, filter_.chunks, covers_charge_number, bits)
        return cls(number, filter_.chunks, covers_charge_number, bits, seal)

    def write(self, connection: sqlite3.Connection) -> None:
        """Within a transaction; with the last chunk go those of a larger filter."""
        row = (self.number, self.chunks, self.covers_charge_number, self.bits, self.seal)
        connection.execute(WRITE_CHUNK, row)
        if self.number == self.chunks - 1:
            connection.execute(DELETE_CHUNKS_BEYOND, (self.chunks,))


class ChunkUnusable(Exception):
    """A stored chunk is of another size, damaged, or not this ledger's."""


def read_chunk(connection: sqlite3.Connection, filter_: RequestFilter, number: int, key: bytes) -> int | None:
    """Add a stored chunk to the filter; the last charge that it covers, or None if there is none. ChunkUnusable."""
    row = connection.execute(CHUNK, (number,)).fetchone()
    if row is None:
        return None
    chunks, covers_charge_number, bits, seal = row
    if chunks != filter_.chunks:
        raise ChunkUnusable(f"it is of {_kibibytes(chunks)} KiB, not of {_kibibytes(filter_.chunks)}")
    if seal != _seal(key, number, chunks, covers_charge_number, bits):
        raise ChunkUnusable(f"its chunk {number} is damaged")
    filter_.add_chunk(number, zlib.decompress(bits))
    return int(covers_charge_number)


def _kibibytes(chunks: int) -> int:
    return chunks * CHUNK_BYTES // 1024


def _seal(key: bytes, number: int, chunks: int, covers_charge_number: int, bits: bytes) -> bytes:
    """With the order of bytes of this machine: on another one, the bits would be others."""
    seal = hashlib.blake2b(digest_size=16, key=key, person=b"request filter")
    seal.update(f"{sys.byteorder},{number},{chunks},{covers_charge_number},".encode())
    seal.update(bits)
    return seal.digest()

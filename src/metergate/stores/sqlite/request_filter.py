"""Which requests were certainly never charged, known from memory: a Bloom filter of all charges' requests.

Nearly every request that is admitted was never charged. Without the filter, the place of each among all charges is read
to see so, on a page of its own anywhere in a large index.

A request has four bits of one word. It was never charged if one of them is not set. Bits are only ever set, so
whatever is added twice, or too early, or to no avail, is harmless; what is missing would be a defect.
"""

import hashlib
import struct
import sys
import threading
from array import array
from collections.abc import Collection, Iterable, Iterator

from metergate.core.books import RequestKey

WORD_BITS = 64
WORD_BYTES = WORD_BITS // 8

# A part of the filter that is stored, and so written in one transaction: some 2 ms in which captures wait.
CHUNK_BYTES = 128 * 1024
CHUNK_WORDS = CHUNK_BYTES // WORD_BYTES

# Two bits of a word, by 12 bits of a hash: a table is faster than shifts.
_TWO_BITS = [1 << (number & 63) | 1 << (number >> 6) for number in range(4_096)]

_two_numbers = struct.Struct("<QQ").unpack


class RequestFilter:
    """Of one ledger. The writer adds and asks while another thread adds what is stored."""

    def __init__(self, content_key: bytes, mebibytes: int) -> None:
        """``content_key``: the ledger's secret, without which nobody can choose ids that collide."""
        self._words = array("Q", [0]) * (mebibytes * 1024 * 1024 // WORD_BYTES)
        self._hash = hashlib.blake2b(digest_size=16, key=content_key, person=b"charged request")
        self._adding = threading.Lock()  # to set a bit is to read a word and write it
        self.is_whole = False  # whether every committed charge is in it; until then every request was perhaps charged

    @property
    def chunks(self) -> int:
        """How many parts it is stored in."""
        return len(self._words) // CHUNK_WORDS

    @property
    def bits(self) -> int:
        """How many it has, set or not."""
        return len(self._words) * WORD_BITS

    def add(self, requests: Iterable[RequestKey]) -> None:
        """Remember that these were charged."""
        placed = list(self._places(requests))
        words = self._words
        with self._adding:
            for place, bits in placed:
                words[place] |= bits

    def perhaps_charged(self, requests: Collection[RequestKey]) -> Collection[RequestKey]:
        """All of these but those that were certainly never charged."""
        if not self.is_whole:
            return requests
        words = self._words
        found = zip(requests, self._places(requests), strict=True)
        return [request for request, (place, bits) in found if words[place] & bits == bits]

    def _places(self, requests: Iterable[RequestKey]) -> Iterator[tuple[int, int]]:
        """The word of each, and its bits."""
        begun, words = self._hash, len(self._words)
        for subscriber_id, authorization_id, request_id in requests:
            request = begun.copy()
            # With the lengths, so that no other ids are the same text.
            lengths = f"{len(subscriber_id)},{len(authorization_id)},"
            request.update(f"{lengths}{subscriber_id}{authorization_id}{request_id}".encode())
            place, bits = _two_numbers(request.digest())
            yield place % words, _TWO_BITS[bits & 4_095] | _TWO_BITS[bits >> 12 & 4_095]

    # --- chunks -----------------------------------------------------------------------------------------------------

    def chunk(self, number: int) -> bytes:
        """A part of it as it is now, CHUNK_BYTES long."""
        return self._words[number * CHUNK_WORDS : (number + 1) * CHUNK_WORDS].tobytes()

    def add_chunk(self, number: int, chunk: bytes) -> None:
        """Set what is set in a part that was stored."""
        part = slice(number * CHUNK_WORDS, (number + 1) * CHUNK_WORDS)
        stored = int.from_bytes(chunk, sys.byteorder)
        with self._adding:
            both = stored | int.from_bytes(self._words[part].tobytes(), sys.byteorder)
            self._words[part] = array("Q", both.to_bytes(CHUNK_BYTES, sys.byteorder))

"""Pages of a list: their size, their tokens, and the times that a filter names."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b
from hmac import compare_digest

from google.protobuf.timestamp_pb2 import Timestamp

from metergate.core.errors import RequestInvalid, Violation
from metergate.edges.violations import Violations

# What the protos promise.
PAGE_ROWS_DEFAULT = 100
PAGE_ROWS_MAX = 1000

# Longer than any token made here; a longer one is not even decoded.
_TOKEN_CHARACTERS_MAX = 1024

# Enough that nobody guesses one; a wrong guess shows only another page of what the caller may see anyway.
_DIGEST_BYTES = 16

# 0001-01-01 to 9999-12-31, as google.protobuf.Timestamp has it.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799
_NANOS_MAX = 999_999_999


def page_rows(page_size: int) -> int:
    """How many rows a page has; RequestInvalid if page_size is negative."""
    if page_size < 0:
        raise RequestInvalid(Violation("page_size", "must not be negative"))
    return min(page_size, PAGE_ROWS_MAX) or PAGE_ROWS_DEFAULT


class PageTokens:
    """Makes a list's cursors into tokens that only the same query takes back. ``key``: any secret of up to 64 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, cursor: str | None, *query: object) -> str:
        """The token of a cursor of a query; nothing after the last page."""
        if cursor is None:
            return ""
        encoded = cursor.encode()
        return _encode(self._digest(encoded, query) + encoded)

    def read(self, token: str, *query: object) -> str | None:
        """The cursor; None for the first page; RequestInvalid if the token is not one of this query."""
        if not token:
            return None
        payload = _decode(token)
        digest, encoded = payload[:_DIGEST_BYTES], payload[_DIGEST_BYTES:]
        if not compare_digest(digest, self._digest(encoded, query)):
            raise _invalid_token()
        return encoded.decode()

    def _digest(self, cursor: bytes, query: tuple[object, ...]) -> bytes:
        content = repr((query, cursor)).encode()
        return blake2b(content, digest_size=_DIGEST_BYTES, key=self._key, person=b"page token").digest()


def read_time_us(moment: Timestamp, path: str, violations: Violations) -> int:
    """Microseconds since the epoch, rounded up.

    Rows have whole microseconds: of those, the same are at or after this time, and before it, as of the exact time.
    """
    if not (_SECONDS_MIN <= moment.seconds <= _SECONDS_MAX and 0 <= moment.nanos <= _NANOS_MAX):
        violations.add(path, "is no time of the years 1 to 9999")
    return moment.seconds * 1_000_000 - (-moment.nanos // 1000)


def _encode(payload: bytes) -> str:
    return urlsafe_b64encode(payload).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes:
    if len(token) > _TOKEN_CHARACTERS_MAX or not token.isascii():
        raise _invalid_token()
    try:
        payload = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except Base64Error as exc:
        raise _invalid_token() from exc
    # The decoder skips what is no base64: only the text that was given out is a token.
    if _encode(payload) != token:
        raise _invalid_token()
    return payload


def _invalid_token() -> RequestInvalid:
    return RequestInvalid(Violation("page_token", "is no next_page_token of an earlier response to this request"))

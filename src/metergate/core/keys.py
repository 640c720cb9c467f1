"""Bearer keys: made of 32 random bytes, shown once, kept as a hash only (L11)."""

import re
from base64 import urlsafe_b64encode
from hashlib import sha256

# Tells people and secret scanners what they found.
KEY_PREFIX = "mg_"

# As many as the hash has: guessing a key is as hard as finding a preimage of its hash.
KEY_SECRET_BYTES = 32

# What is kept of a key for people to tell keys apart by: of its 256 random bits, 220 stay unknown.
SHOWN_CHARACTERS = len(KEY_PREFIX) + 6

_KEY = re.compile(r"mg_[A-Za-z0-9_-]{43}", re.ASCII)


def format_key(secret: bytes) -> str:
    """Return the key made of ``KEY_SECRET_BYTES`` random bytes; ValueError for another number of bytes."""
    if len(secret) != KEY_SECRET_BYTES:
        raise ValueError(f"a key is made of {KEY_SECRET_BYTES} bytes, not {len(secret)}")
    return KEY_PREFIX + urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")


def is_key(text: str) -> bool:
    """Whether a text has the form of a key; it may still be unknown."""
    return _KEY.fullmatch(text) is not None


def prefix_of(text: str) -> str:
    """The first ``SHOWN_CHARACTERS`` of a key."""
    return text[:SHOWN_CHARACTERS]


def hash_key(text: str) -> bytes:
    """Return the SHA-256 of the whole key. The key is random, so it needs neither salt nor stretching."""
    return sha256(text.encode()).digest()

"""Ports that are kept for a server that starts later, or comes back."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that no other process is given meanwhile; who names it can listen on it.

    Nobody listens there by this alone: who connects is refused.
    """
    with socket.socket() as kept:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # each server sets the one or the other
            kept.setsockopt(socket.SOL_SOCKET, option, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])

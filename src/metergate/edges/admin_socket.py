"""The Unix-domain socket beside the store, on which a gateway that serves takes its operator's commands.

Whoever may open it may write the ledger: only the user that the gateway runs as (mode 0600) and root may.
"""

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import grpc

from metergate.core.errors import ListenerRefused
from metergate.edges.calls import Gate, Servicer

logger = logging.getLogger(__name__)

# The address of a socket ends with a NUL within 108 bytes on Linux and 104 elsewhere.
PATH_BYTES_MAX = 103

# A command is one call of a few hundred bytes; people and scripts run some of them at once.
CALLS_MAX = 64
MESSAGE_BYTES_MAX = 64 * 1024


class _Operator:
    """Lets everybody in: the socket's mode has kept out all others."""

    async def authenticate(self, _metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Nobody in particular."""


def admin_socket_path(store: Path) -> Path:
    """Where the gateway that serves this store listens: beside the file itself, whatever links lead to it."""
    return Path(f"{os.path.realpath(store)}.admin")


def admin_target(path: Path) -> str:
    """The socket as gRPC calls it."""
    return f"unix:{quote(str(path))}"


async def start_admin_server(path: Path, servicer: Servicer) -> grpc.aio.Server:
    """Listen on the socket, in the place of one that a dead gateway left; ListenerRefused if that cannot be.

    The caller holds the store's lock, so that no living gateway listens there.
    """
    length = len(os.fsencode(path))
    if length > PATH_BYTES_MAX:
        problem = (
            f"a socket's path has at most {PATH_BYTES_MAX} bytes, this one {length}; move the store to a shorter one"
        )
        raise ListenerRefused(address=f"unix:{path}", problem=problem)
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS_MAX)
    gate = Gate(
        _Operator(),
        message_bytes_max=MESSAGE_BYTES_MAX,
        calls_max=CALLS_MAX,
        observe=lambda _method, _error: None,
    )
    server.add_registered_method_handlers(servicer.service.full_name, gate.handlers(servicer))
    _bind(server, path)
    await server.start()
    return server


def remove_admin_socket(path: Path) -> None:
    """Remove it after its server stopped; anything else of that name is left alone."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return


def leave_admin_socket(path: Path) -> None:
    """Remove it at the end, if its folder can be written; the next gateway takes the place of what is left behind."""
    try:
        remove_admin_socket(path)
    except OSError as exc:
        logger.warning("the socket %s is left behind: %s", path, exc.strerror)


def _bind(server: grpc.aio.Server, path: Path) -> None:
    """Nobody may connect between its making and its mode: it is made with the mode."""
    problem = "the socket cannot be made there"
    mask = os.umask(0o177)
    try:
        remove_admin_socket(path)
        server.add_insecure_port(admin_target(path))
    except (OSError, RuntimeError) as exc:
        raise ListenerRefused(address=f"unix:{path}", problem=getattr(exc, "strerror", None) or problem) from exc
    finally:
        os.umask(mask)

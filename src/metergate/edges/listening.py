"""Why an address cannot be listened on, and what to do about it: gRPC does not say."""

import errno
import socket

from metergate.core.errors import ListenerRefused

_CURES = {
    errno.EADDRINUSE: "another process listens there: stop it, or change {key}",
    errno.EACCES: "this user may not take that port: choose one from 1024 up as {key}",
    errno.EADDRNOTAVAIL: "this machine has no such address: change {key}",
}


def require_free(address: str, key: str) -> None:
    """ListenerRefused if HOST:PORT cannot be bound now: asked before gRPC, which would write lines of its own."""
    problem = _problem(address, key)
    if problem:
        raise ListenerRefused(address=address, problem=problem)


def listener_refused(address: str, key: str) -> ListenerRefused:
    """The error for HOST:PORT that could not be bound, which the configuration calls ``key``."""
    taken_meanwhile = f"it was in use and is not any more: start again, or change {key}"
    return ListenerRefused(address=address, problem=_problem(address, key) or taken_meanwhile)


def _problem(address: str, key: str) -> str:
    """What keeps the address from being bound; "" if nothing does."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, _, _, socket_address = found[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a dead one's port is free
            probe.bind(socket_address)
            probe.listen()
    except socket.gaierror:
        return f"nobody knows the host {host}: change {key}"
    except OSError as exc:
        return _CURES.get(exc.errno or 0, f"{exc.strerror}: change {{key}}").format(key=key)
    return ""

"""Where something listens: HOST:PORT, and the URLs of HTTP servers."""

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

PORT_MAX = 65_535

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})", re.ASCII)


def check_listen_address(text: str) -> str:
    """The text if it is HOST:PORT, where port 0 lets the system choose; ValueError otherwise."""
    host, _, port = text.rpartition(":")
    if not _is_host(host) or re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) is None or int(port) > PORT_MAX:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return text


def check_address(text: str) -> str:
    """The text if it is HOST:PORT of a server; ValueError otherwise."""
    if int(check_listen_address(text).rpartition(":")[2]) == 0:
        raise ValueError("must be HOST:PORT, and the port not 0")
    return text


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is on this machine only; a name other than localhost may lead anywhere."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_url(text: str) -> str:
    """The text if it is the URL of an HTTP server, without user, query and fragment; ValueError otherwise."""
    problem = "must be a URL, such as http://127.0.0.1:8080/v1"
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(problem)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(problem) from None
    if parts.scheme not in ("http", "https") or port == 0 or not _is_host(f"[{host}]" if ":" in host else host):
        raise ValueError(problem)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{problem}, with neither a user, a query nor a fragment")
    return text


def _is_host(host: str) -> bool:
    """Whether it is a name, an IPv4 address, or an IPv6 address in brackets."""
    if not (host.startswith("[") and host.endswith("]")):
        return _NAME.fullmatch(host) is not None
    try:
        IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True

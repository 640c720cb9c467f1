"""The heads of requests and answers, as HTTP/2 says them. Pure."""

from collections.abc import Mapping

from hpack import HeaderTuple, NeverIndexedHeaderTuple
from yarl import URL

# Neither this side nor a proxy on the way may keep them in a table that other requests share.
_SECRET_HEADERS = frozenset({"authorization"})


def request_head(method: str, url: URL, headers: Mapping[str, str]) -> list[HeaderTuple]:
    """The head of a request."""
    head = [
        HeaderTuple(":method", method),
        HeaderTuple(":scheme", url.scheme),
        HeaderTuple(":authority", url.host_port_subcomponent or ""),
        HeaderTuple(":path", url.raw_path_qs),
    ]
    for name, value in headers.items():
        name = name.lower()
        head.append((NeverIndexedHeaderTuple if name in _SECRET_HEADERS else HeaderTuple)(name, value))
    return head


def answer_head(headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
    """The status and the content type, in small letters and without parameters; None if there is no status."""
    status = headers.get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        return None
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return int(status), content_type.decode("ascii", "replace")

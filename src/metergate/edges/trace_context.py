"""The W3C trace context of a call: checked, because it is sent on to backends and decides what is traced."""

import re
from collections.abc import Iterable, Mapping

# https://www.w3.org/TR/trace-context/ : version, trace id, parent id, flags. Of a later version, more may follow.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,64})?"
)

# What the standard asks every party to pass on; a longer one is left out, as it allows.
_TRACESTATE = re.compile(r"[\x20-\x7e\t]{1,512}")

_NOTHING: Mapping[str, str] = {}


def read_trace_context(metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """``traceparent`` and perhaps ``tracestate``; empty if there is none, or none that the standard allows."""
    parents = [value for name, value in metadata if name == "traceparent"]
    if len(parents) != 1 or not isinstance(parents[0], str) or not _TRACEPARENT.fullmatch(parents[0]):
        return _NOTHING
    states = [value for name, value in metadata if name == "tracestate" and isinstance(value, str)]
    state = ",".join(states)
    if not _TRACESTATE.fullmatch(state):
        return {"traceparent": parents[0]}
    return {"traceparent": parents[0], "tracestate": state}

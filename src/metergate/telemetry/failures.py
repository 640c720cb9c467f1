"""Errors as a log may show them: where they came from, never what they quote (L11)."""

import traceback

from metergate.core.errors import MetergateError, RequestInvalid
from metergate.telemetry.printable import printable

# A traceback deeper than this is a recursion; its last calls tell which.
_FRAMES_MAX = 30

# More causes than this are a loop of retries; the latest tell enough.
_CAUSES_MAX = 5


def describe(error: BaseException) -> str:
    """Where an error came from, by type and traceback: foreign errors' texts may quote a prompt (L11)."""
    lines: list[str] = []
    link: BaseException | None = error
    while link is not None and len(lines) < _CAUSES_MAX:
        is_ours = isinstance(link, MetergateError) and not isinstance(link, RequestInvalid)
        text = f": {printable(str(link))}" if is_ours else ""
        frames = "".join(traceback.format_tb(link.__traceback__, limit=-_FRAMES_MAX))
        lines.append(f"{type(link).__qualname__}{text}\n{frames}")
        link = link.__cause__ or link.__context__
    return "caused by ".join(lines)

"""What is checked of one answer while it is read, whatever the backend's protocol.

An answer ends once, and what names its tool calls is bounded: ids and names are delivered in one piece and kept while
the answer runs, so a backend must not choose how large or how many they are.
"""

import logging
from dataclasses import dataclass

from metergate.core.errors import BackendUnavailable
from metergate.core.inference import ToolCallDelta
from metergate.core.usage import Usage

_log = logging.getLogger(__name__)

# A request has at most 128 tools, and no model is known to call more at once.
TOOL_CALL_INDEX_MAX = 127

# The longest ids known are 40 characters; a name is at most 64 where an app gives it, but models make names up.
TOOL_CALL_ID_CHARACTERS_MAX = 128
TOOL_CALL_NAME_CHARACTERS_MAX = 256


@dataclass(slots=True)
class _Named:
    """What one tool call is called so far."""

    tool_call_id: str = ""
    name: str = ""


class AnswerChecks:
    """The checks of one answer. Those that fail raise BackendUnavailable."""

    def __init__(self, *, backend_id: str, model_id: str) -> None:
        self._backend_id = backend_id
        self._model_id = model_id
        self._has_finished = False
        self._has_warned_of_usage = False
        self._reported_tokens = 0
        self._named: dict[int, _Named] = {}  # by the tool call's index

    def before_delta(self) -> None:
        """Say that a delta comes, one that is not empty; it must not follow the finish reason."""
        if self._has_finished:
            raise self.unavailable("its answer went on after the finish reason")

    def finish(self) -> bool:
        """Say that a finish reason comes. Whether it is the first: some routers repeat it, and the first one counts."""
        is_first, self._has_finished = not self._has_finished, True
        return is_first

    def end(self) -> None:
        """Say that nothing more comes; the finish reason must have come."""
        if not self._has_finished:
            raise self.unavailable("its answer broke off before a finish reason")

    def tool_call(self, *, index: int, tool_call_id: str, name: str, arguments: str) -> ToolCallDelta | None:
        """A piece of a tool call without what was said before; None if nothing is left of it."""
        if not 0 <= index <= TOOL_CALL_INDEX_MAX:
            raise self.unavailable(f"it sent a piece of a tool call with an index outside 0 to {TOOL_CALL_INDEX_MAX}")
        if tool_call_id or name:
            named = self._named.setdefault(index, _Named())
            # Some servers repeat both with every piece.
            tool_call_id = self._new("id", tool_call_id, named.tool_call_id, TOOL_CALL_ID_CHARACTERS_MAX)
            name = self._new("name", name, named.name, TOOL_CALL_NAME_CHARACTERS_MAX)
            named.tool_call_id = named.tool_call_id or tool_call_id
            named.name = named.name or name
        if not (tool_call_id or name or arguments):
            return None
        return ToolCallDelta(index=index, tool_call_id=tool_call_id, name=name, arguments=arguments)

    def _new(self, what: str, text: str, before: str, characters_max: int) -> str:
        """The text if it is new, "" if it only repeats the one before."""
        if not text or text == before:
            return ""
        if before:
            raise self.unavailable(f"it sent a second {what} for a tool call")
        if len(text) > characters_max:
            raise self.unavailable(f"it sent a tool call whose {what} has more than {characters_max} characters")
        return text

    def cumulative(self, usage: Usage) -> Usage | None:
        """A report, if it can follow those before it: each is of all so far, so it has no fewer tokens than they.

        Fewer are the tokens of one piece, and taken for the whole they would lower the charge.
        """
        if usage.total() < self._reported_tokens:
            self.ignore_usage()
            return None
        self._reported_tokens = usage.total()
        return usage

    def ignore_usage(self) -> None:
        """Warn, once an answer, of a usage that cannot be true."""
        if not self._has_warned_of_usage:
            self._has_warned_of_usage = True
            _log.warning(
                "backend %s reported a usage for model %s that cannot be true; it is ignored",
                self._backend_id,
                self._model_id,
            )

    def unavailable(self, problem: str) -> BackendUnavailable:
        """The error of an answer that makes no sense."""
        return BackendUnavailable(model_id=self._model_id, problem=problem)

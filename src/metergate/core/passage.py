"""What a content policy is asked about. It is neither stored nor logged (L11)."""

from dataclasses import dataclass
from enum import StrEnum

from metergate.core.inference import Delta


class Verdict(StrEnum):
    """What a content policy says of a passage."""

    ALLOWED = "allowed"
    BLOCKED = "blocked"
    FAILED = "failed"  # nothing, or not in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The end of what was allowed of an answer before, by kind; at most the configured characters each."""

    content: str = ""
    reasoning_content: str = ""
    arguments: str = ""  # of all tool calls, one after the other

    def then(self, delta: Delta, characters_max: int) -> "Context":
        """The context of what follows the delta."""
        arguments = "".join(call.arguments for call in delta.tool_calls)
        return Context(
            content=_end(self.content + delta.content, characters_max),
            reasoning_content=_end(self.reasoning_content + delta.reasoning_content, characters_max),
            arguments=_end(self.arguments + arguments, characters_max),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of an answer that is about to be delivered."""

    reservation_id: str  # of the request: the same for every piece of one answer
    model_id: str
    index: int  # 0 for the first piece of an answer, then counted up
    delta: Delta  # content, reasoning and tool calls
    before: Context


def _end(text: str, characters_max: int) -> str:
    return text[-characters_max:] if characters_max else ""

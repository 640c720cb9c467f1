"""An inference request and what a backend answers, in the domain's own words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.rows import FinishReason
from metergate.core.usage import Usage


class Role(StrEnum):
    """Who said a message."""

    SYSTEM = "SYSTEM"
    USER = "USER"
    ASSISTANT = "ASSISTANT"
    TOOL = "TOOL"


class ResponseFormatKind(StrEnum):
    """The form the answer must have."""

    TEXT = "TEXT"
    JSON_OBJECT = "JSON_OBJECT"
    JSON_SCHEMA = "JSON_SCHEMA"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks the app to make."""

    tool_call_id: str
    name: str
    arguments: str  # JSON text


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of the conversation."""

    role: Role
    parts: tuple[str, ...] = ()  # text parts, in order
    tool_calls: tuple[ToolCall, ...] = ()  # of an ASSISTANT
    tool_call_id: str = ""  # of a TOOL: the call it answers

    def text(self) -> str:
        """All text parts as one."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may ask the app to call."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""  # JSON text of an object; "": no parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """The form the answer must have; the schema only with JSON_SCHEMA."""

    kind: ResponseFormatKind = ResponseFormatKind.TEXT
    schema_name: str = ""
    json_schema: str = ""  # JSON text


class ToolChoiceKind(StrEnum):
    """Whether the model calls tools. If it must not, the request has none."""

    AUTO = "AUTO"
    REQUIRED = "REQUIRED"
    FUNCTION = "FUNCTION"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether the model calls tools; the name only with FUNCTION."""

    kind: ToolChoiceKind = ToolChoiceKind.AUTO
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; None leaves it to the backend."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


# Of nearly all requests, which share them.
DEFAULT_RESPONSE_FORMAT = ResponseFormat()
DEFAULT_TOOL_CHOICE = ToolChoice()
DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the prompt's tokens are counted from."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def characters(self) -> int:
        """How much text it has: all that a template could render."""
        characters = 0
        for tool in self.tools:
            characters += len(tool.name) + len(tool.description) + len(tool.parameters_json_schema)
        for message in self.messages:
            characters += sum(map(len, message.parts)) + len(message.tool_call_id)
            for call in message.tool_calls:
                characters += len(call.tool_call_id) + len(call.name) + len(call.arguments)
        return characters


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A validated request of an app."""

    request_id: str
    model_id: str
    prompt: Prompt
    sampling: Sampling = DEFAULT_SAMPLING
    response_format: ResponseFormat = DEFAULT_RESPONSE_FORMAT
    tool_choice: ToolChoice = DEFAULT_TOOL_CHOICE
    max_completion_tokens: int | None = None  # >= 1; None: as far as the model's context and the credit go
    credit_limit_microcredits: int | None = None  # > 0; None: no limit of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """What is sent to a backend."""

    model_id: str  # the model's id in this gateway; the adapter knows the backend's own name for it
    prompt: Prompt
    sampling: Sampling
    response_format: ResponseFormat
    max_completion_tokens: int
    tool_choice: ToolChoice = DEFAULT_TOOL_CHOICE
    # The prompt as the model's own template and vocabulary have it; (): the backend does that itself.
    prompt_token_ids: Sequence[int] = ()
    trace_context: Mapping[str, str] = field(default_factory=dict)  # W3C traceparent and tracestate, sent as headers
    is_repeat: bool = False  # a kept connection ended instead of an answer to it: it is sent on a new one


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call; pieces of one index belong together."""

    index: int
    tool_call_id: str = ""  # with the first piece
    name: str = ""  # with the first piece
    arguments: str = ""  # appended piece by piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a model's answer. Within one delta, reasoning comes before content before tool calls."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    # Where the text of each token id in it begins: characters from the delta's beginning, reasoning first, ascending. A
    # token without text of its own begins where the next text does. Text before the first belongs to a token of an
    # earlier delta. Only of a model that is counted by its token ids (TOKEN_IDS), which has no tool calls.
    token_starts: tuple[int, ...] = ()
    usage: Usage | None = None  # what the backend had counted when it sent the end of this: cumulative; None: not said

    def is_empty(self) -> bool:
        """Whether there is nothing to deliver."""
        return not (self.content or self.reasoning_content or self.tool_calls)


@dataclass(frozen=True, slots=True)
class TokenIds:
    """What a backend generated, as ids of the model's vocabulary: the gateway makes deltas of them."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The backend said why its answer ended."""

    reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """The backend said what it counted: cumulative, classes made disjoint by the adapter."""

    usage: Usage


BackendEvent = Delta | TokenIds | Finish | UsageReport

"""What an OpenAI-compatible server is sent, and what it answers. Pure: bytes on one side, the domain on the other.

The request is an allow-list: nothing is sent that the gateway did not understand. Of the answer only the fields named
here are read. No text of the backend goes into an error or a log, not even its error messages: they may quote the
prompt. A status, and words that look like a name (an error's type, its code), are all that is kept.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.sse import EventStreamDecoder, EventStreamInvalid
from metergate.core.errors import BackendRejected
from metergate.core.inference import (
    BackendEvent,
    BackendRequest,
    Delta,
    Finish,
    Message,
    ResponseFormat,
    ResponseFormatKind,
    Tool,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceKind,
    UsageReport,
)
from metergate.core.parameters import Parameter, parameters_of
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

_log = logging.getLogger(__name__)

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]

_DONE = "[DONE]"

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}

# With these the backend says that it did not get to the end; vLLM aborts, routers pass on an error.
_FAILED_FINISH_REASONS = frozenset({"abort", "error"})

# A word of the backend that may be shown: what types and codes look like, and too short for much else.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}|[0-9]{3,5}")


# --- the request ----------------------------------------------------------------------------------------------------


def encode_request(
    request: BackendRequest,
    *,
    model: str,
    stream: bool,
    include_usage: bool,
    max_tokens_field: MaxTokensField,
    chunk_usage: bool = False,
) -> bytes:
    """The JSON body of a chat completion request for ``model``, the backend's own name of it.

    BackendRejected if a JSON Schema of the request is no JSON, or for a parameter that this protocol cannot say.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.prompt.messages],
        max_tokens_field: request.max_completion_tokens,
        "stream": stream,
    }
    if stream and include_usage:
        body["stream_options"] = {"include_usage": True}
        if chunk_usage:
            body["stream_options"]["continuous_usage_stats"] = True
    for parameter in parameters_of(request):
        write = _PARAMETERS.get(parameter)
        if write is None:
            # Left out, it would be an answer to another question.
            raise BackendRejected(model_id=request.model_id, problem=f"its protocol has no {parameter}")
        try:
            body |= write(request)
        except (msgspec.MsgspecError, RecursionError):
            problem = "a JSON Schema of the request is not JSON"
            raise BackendRejected(model_id=request.model_id, problem=problem) from None
    return msgspec.json.encode(body)


def _message(message: Message) -> dict[str, Any]:
    # The text goes as one plain string, an empty one if there is none: that is what its tokens were counted from, and
    # the one form that every backend and every chat template takes.
    encoded: dict[str, Any] = {"role": message.role.value.lower(), "content": message.text()}
    if message.tool_calls:
        encoded["tool_calls"] = [
            {"id": call.tool_call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        encoded["tool_call_id"] = message.tool_call_id
    return encoded


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json_schema:
        # Decoded, not pasted: pasted text could close the object and add fields of its own to the request.
        function["parameters"] = msgspec.json.decode(tool.parameters_json_schema)
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.kind is ToolChoiceKind.FUNCTION:
        return {"type": "function", "function": {"name": choice.function}}
    return choice.kind.value.lower()


def _response_format(response_format: ResponseFormat) -> dict[str, Any]:
    if response_format.kind is ResponseFormatKind.JSON_OBJECT:
        return {"type": "json_object"}
    schema = msgspec.json.decode(response_format.json_schema)
    # Strict, because the app was promised a value that the schema describes.
    return {
        "type": "json_schema",
        "json_schema": {"name": response_format.schema_name, "schema": schema, "strict": True},
    }


# Everything that is sent of what a request may set, and how; what is not here is refused. Of what else servers take (n,
# best_of, logprobs, echo, service_tier, modalities, web_search_options, ...) all could cost or send what is not
# counted.
_PARAMETERS: Mapping[Parameter, Callable[[BackendRequest], dict[str, Any]]] = {
    Parameter.TEMPERATURE: lambda request: {"temperature": request.sampling.temperature},
    Parameter.TOP_P: lambda request: {"top_p": request.sampling.top_p},
    Parameter.TOP_K: lambda request: {"top_k": request.sampling.top_k},
    Parameter.MIN_P: lambda request: {"min_p": request.sampling.min_p},
    Parameter.STOP: lambda request: {"stop": request.sampling.stop},
    Parameter.SEED: lambda request: {"seed": request.sampling.seed},
    Parameter.PRESENCE_PENALTY: lambda request: {"presence_penalty": request.sampling.presence_penalty},
    Parameter.FREQUENCY_PENALTY: lambda request: {"frequency_penalty": request.sampling.frequency_penalty},
    Parameter.TOOLS: lambda request: {"tools": [_tool(tool) for tool in request.prompt.tools]},
    Parameter.TOOL_CHOICE: lambda request: {"tool_choice": _tool_choice(request.tool_choice)},
    Parameter.JSON_OBJECT: lambda request: {"response_format": _response_format(request.response_format)},
    Parameter.JSON_SCHEMA: lambda request: {"response_format": _response_format(request.response_format)},
    Parameter.ASSISTANT_LAST: lambda request: {},  # it is in the messages
}

PARAMETERS = frozenset(_PARAMETERS)

# What OpenAI documents, and so what a server takes of which nothing else is known.
DOCUMENTED_PARAMETERS = PARAMETERS - {Parameter.TOP_K, Parameter.MIN_P, Parameter.ASSISTANT_LAST}


# --- the answer -----------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None  # only streams number their calls
    id: str | None = None
    function: _Function | None = None


class _Text(msgspec.Struct):
    """A delta of a stream, or the message of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


NULL = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = NULL  # decoded apart: nonsense in it spoils the report, not the answer
    error: msgspec.Raw = NULL


# A count above this is no count; every sum of such counts fits in 64 bits.
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class PromptDetails(msgspec.Struct):
    """What a usage tells of its prompt tokens."""

    cached_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None  # tells whether the details are part of the two above
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's word for cached_tokens
    reasoning_tokens: Tokens | None = None  # SGLang's place for it
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_answers = msgspec.json.Decoder(_Answer)
_usages = msgspec.json.Decoder(_Usage)
_errors = msgspec.json.Decoder(_Error)
_error_answers = msgspec.json.Decoder(_ErrorAnswer)


class AnswerReader:
    """Reads one answer. Every method raises BackendUnavailable when the answer makes no sense."""

    def __init__(self, *, backend_id: str, model_id: str) -> None:
        self._backend_id = backend_id
        self._model_id = model_id
        self._decoder = EventStreamDecoder()
        self._checks = AnswerChecks(backend_id=backend_id, model_id=model_id)
        self.is_done = False  # the stream said that nothing follows

    def feed(self, chunk: bytes) -> Iterator[BackendEvent]:
        """The events that this piece of a stream completes; consume them all before the next piece."""
        try:
            for data in self._decoder.feed(chunk):
                if data == _DONE:
                    self.is_done = True
                    return
                if data:  # some proxies keep a connection alive with an empty one
                    yield from self._events(data)
        except EventStreamInvalid as exc:
            raise self._checks.unavailable(str(exc)) from None

    def read_whole(self, body: bytes) -> Iterator[BackendEvent]:
        """The events of an answer that is not streamed."""
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise self._checks.unavailable("it sent an answer that is not UTF-8") from None
        yield from self._events(text)
        self.end()

    def end(self) -> None:
        """Say that nothing more comes; it is an error before the finish reason."""
        self._checks.end()

    def _events(self, text: str) -> Iterator[BackendEvent]:
        try:
            answer = _answers.decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # The original error may name fields of the answer.
            raise self._checks.unavailable("it sent something else than a chat completion") from None
        if answer.error is not NULL and answer.error != NULL:
            raise self._checks.unavailable(f"it reported an error{_error_name(answer.error)}")
        if answer.choices:
            yield from self._choice(answer.choices)
        if answer.usage is not NULL and answer.usage != NULL:
            usage = self._usage(answer.usage)
            if usage is not None:
                yield UsageReport(usage=usage)

    def _choice(self, choices: list[_Choice]) -> Iterator[BackendEvent]:
        choice = choices[0]
        if len(choices) > 1 or choice.index != 0:
            raise self._checks.unavailable("it sent more than the one choice that was asked for")
        text = choice.delta or choice.message
        if text is not None:
            delta = self._delta(text, is_whole=choice.message is not None)
            if not delta.is_empty():
                self._checks.before_delta()
                yield delta
        if choice.finish_reason and self._checks.finish():
            yield Finish(reason=self._finish_reason(choice.finish_reason))

    def _delta(self, text: _Text, *, is_whole: bool) -> Delta:
        content = text.content or ""
        if text.refusal:
            content += text.refusal
        # Two names for one thing: a server that sends both sends the same text twice.
        reasoning = text.reasoning_content or text.reasoning or ""
        if not text.tool_calls:
            return Delta(content=content, reasoning_content=reasoning)
        pieces = (
            self._tool_call(call, position if is_whole else call.index) for position, call in enumerate(text.tool_calls)
        )
        return Delta(
            content=content,
            reasoning_content=reasoning,
            tool_calls=tuple(piece for piece in pieces if piece is not None),
        )

    def _tool_call(self, call: _ToolCall, index: int | None) -> ToolCallDelta | None:
        if index is None:
            raise self._checks.unavailable("it sent a piece of a tool call without an index")
        function = call.function or _Function()
        return self._checks.tool_call(
            index=index, tool_call_id=call.id or "", name=function.name or "", arguments=function.arguments or ""
        )

    def _finish_reason(self, reason: str) -> FinishReason:
        if reason in _FAILED_FINISH_REASONS:
            raise self._checks.unavailable(f"it ended its answer with {reason}")
        known = _FINISH_REASONS.get(reason)
        if known is not None:
            return known
        # The answer is whole, only the word for its end is new: STOP promises the app the least.
        _log.warning(
            "backend %s ended an answer of model %s with an unknown finish reason%s; taken for STOP",
            self._backend_id,
            self._model_id,
            _in_brackets(reason),
        )
        return FinishReason.STOP

    def _usage(self, raw: msgspec.Raw) -> Usage | None:
        """The report with its classes made disjoint; None, and one warning an answer, if it cannot be true."""
        try:
            return self._checks.cumulative(_disjoint(_usages.decode(raw)))
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, and so is a class below zero
            self._checks.ignore_usage()
            return None


def _disjoint(usage: _Usage) -> Usage:
    """The classes of a report, each token in one; ValueError if details are larger than what they are details of.

    Nearly all count cached tokens within the prompt's and reasoning within the completion's. Some count reasoning
    beside it (xAI), and their total says so.
    """
    prompt_details = usage.prompt_tokens_details or PromptDetails()
    completion_details = usage.completion_tokens_details or _CompletionDetails()
    cached = _first(prompt_details.cached_tokens, usage.prompt_cache_hit_tokens)
    reasoning = _first(completion_details.reasoning_tokens, usage.reasoning_tokens)
    beside = None if usage.total_tokens is None else usage.total_tokens - usage.prompt_tokens - usage.completion_tokens
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not beside or beside not in (cached, reasoning, cached + reasoning):
        return _usage_of(prompt - cached, cached, completion - reasoning, reasoning)
    # Equal amounts could be either; reasoning is what is known to be counted beside.
    cached_beside = beside == cached + reasoning or (beside == cached and beside != reasoning)
    reasoning_beside = beside == cached + reasoning or beside == reasoning
    return _usage_of(
        prompt if cached_beside else prompt - cached,
        cached,
        completion if reasoning_beside else completion - reasoning,
        reasoning,
    )


def _first(*counts: int | None) -> int:
    """The first that was said, a zero too; 0 if none was."""
    return next((count for count in counts if count is not None), 0)


def _usage_of(prompt: int, cached: int, completion: int, reasoning: int) -> Usage:
    return Usage.of(
        {
            TokenClass.PROMPT: prompt,
            TokenClass.CACHED_PROMPT: cached,
            TokenClass.COMPLETION: completion,
            TokenClass.REASONING: reasoning,
        }
    )


# --- errors ---------------------------------------------------------------------------------------------------------


def error_answer_name(body: bytes) -> str:
    """What the body of an error answer calls its error, as " (type, code)"; "" if it names none."""
    try:
        error = _error_answers.decode(body).error
    except (ValueError, RecursionError):
        return ""
    return _in_brackets(error.type, error.code)


def _error_name(raw: msgspec.Raw) -> str:
    try:
        error = _errors.decode(raw)
    except (ValueError, RecursionError):
        return ""
    return _in_brackets(error.type, error.code)


def _in_brackets(*words: str | int | None) -> str:
    """Those words that look like a name, in brackets after a blank."""
    names = [str(word) for word in words if word is not None and _NAME.fullmatch(str(word))]
    return f" ({', '.join(names)})" if names else ""

"""What an OpenAI-compatible server answers. Pure: bytes on one side, the domain on the other.

Only the fields named here are read. No text of the backend goes into an error or a log, not even its error messages:
they may quote the prompt. A status, and words that look like a name (an error's type, its code), are all that is kept.
"""

import logging
from collections.abc import Iterator

import msgspec

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.openai_errors import error_name, in_brackets
from metergate.backends.openai_usage import read_usage
from metergate.backends.sse import EventStreamDecoder, EventStreamInvalid
from metergate.core.inference import BackendEvent, Delta, Finish, ToolCallDelta, UsageReport
from metergate.core.rows import FinishReason
from metergate.core.usage import Usage

_log = logging.getLogger(__name__)

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


_answers = msgspec.json.Decoder(_Answer)


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
            raise self._checks.unavailable(f"it reported an error{error_name(answer.error)}")
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
            in_brackets(reason),
        )
        return FinishReason.STOP

    def _usage(self, raw: msgspec.Raw) -> Usage | None:
        """The report with its classes made disjoint; None, and one warning an answer, if it cannot be true."""
        try:
            return self._checks.cumulative(read_usage(raw))
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, and so is a class below zero
            self._checks.ignore_usage()
            return None

"""Cutting and joining deltas. Neither changes what the app receives in the end, nor its price (L7)."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

from metergate.core.inference import Delta, Message, Role, ToolCall, ToolCallDelta


def length(delta: Delta) -> int:
    """Characters of a delta, all that is delivered of it."""
    characters = len(delta.reasoning_content) + len(delta.content)
    if delta.tool_calls:
        characters += sum(_head_length(call) + len(call.arguments) for call in delta.tool_calls)
    return characters


def _head_length(call: ToolCallDelta) -> int:
    return len(call.tool_call_id) + len(call.name)


def joins(earlier: Delta, later: Delta) -> bool:
    """Whether the two can be one delta: inside one, reasoning comes before content before tool calls.

    A delta ends where its backend said what it had counted: that would be of less than the joined one.
    """
    if earlier.usage is not None and later.usage is None:
        return False
    if later.reasoning_content:
        return not (earlier.content or earlier.tool_calls)
    return not (later.content and earlier.tool_calls)


def join(deltas: list[Delta]) -> Delta:
    """Return one delta of several that join; pieces of one tool call that follow each other become one piece."""
    if len(deltas) == 1:
        return deltas[0]
    if not any(delta.tool_calls or delta.reasoning_content for delta in deltas):
        content = "".join([delta.content for delta in deltas])
        return Delta(content=content, token_starts=_joined_starts(deltas), usage=deltas[-1].usage)
    calls: list[ToolCallDelta] = []
    for call in (call for delta in deltas for call in delta.tool_calls):
        if calls and calls[-1].index == call.index and not call.name and not call.tool_call_id:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
        else:
            calls.append(call)
    return Delta(
        reasoning_content="".join(delta.reasoning_content for delta in deltas),
        content="".join(delta.content for delta in deltas),
        tool_calls=tuple(calls),
        usage=deltas[-1].usage,
        token_starts=_joined_starts(deltas),
    )


def _joined_starts(deltas: list[Delta]) -> tuple[int, ...]:
    """Where the tokens of several deltas begin in what they join to: their texts follow each other there as they do."""
    if not any(delta.token_starts for delta in deltas):
        return ()
    starts: list[int] = []
    characters = 0
    for delta in deltas:
        starts += [characters + start for start in delta.token_starts]
        characters += length(delta)
    return tuple(starts)


def split(delta: Delta, characters: int) -> tuple[Delta, Delta]:
    """Return the first ``characters`` of a delta and the rest. A tool call's id and name are not cut.

    A token id goes with the first character that it stands for; what the backend counted, with the delta's end.
    """
    first, rest = _split_texts(delta, characters)
    if delta.token_starts:
        tokens = bisect_left(delta.token_starts, characters)
        moved = tuple([start - characters for start in delta.token_starts[tokens:]])
        first, rest = replace(first, token_starts=delta.token_starts[:tokens]), replace(rest, token_starts=moved)
    if delta.usage is None:
        return first, rest
    if rest.is_empty():
        return replace(first, usage=delta.usage), rest
    return first, replace(rest, usage=delta.usage)


def _split_texts(delta: Delta, characters: int) -> tuple[Delta, Delta]:
    reasoning = delta.reasoning_content
    if characters < len(reasoning):
        return Delta(reasoning_content=reasoning[:characters]), replace(delta, reasoning_content=reasoning[characters:])
    left = characters - len(reasoning)
    if left < len(delta.content):
        head = Delta(reasoning_content=reasoning, content=delta.content[:left])
        return head, Delta(content=delta.content[left:], tool_calls=delta.tool_calls)
    head_calls, tail_calls = _split_calls(delta.tool_calls, left - len(delta.content))
    head = Delta(reasoning_content=reasoning, content=delta.content, tool_calls=head_calls)
    return head, Delta(tool_calls=tail_calls)


def split_off(delta: Delta, characters: int) -> tuple[Delta, Delta]:
    """Split as ``split`` does, but so that the first part is never empty: it may be longer by a tool call's name."""
    first, rest = split(delta, characters)
    return split(delta, _head_length(delta.tool_calls[0])) if first.is_empty() else (first, rest)


def _split_calls(
    calls: Iterable[ToolCallDelta], characters: int
) -> tuple[tuple[ToolCallDelta, ...], tuple[ToolCallDelta, ...]]:
    head: list[ToolCallDelta] = []
    tail: list[ToolCallDelta] = []
    left = characters
    for call in calls:
        size = _head_length(call) + len(call.arguments)
        if tail or left < _head_length(call):
            tail.append(call)
        elif left >= size:
            head.append(call)
            left -= size
        else:
            cut = left - _head_length(call)
            head.append(replace(call, arguments=call.arguments[:cut]))
            tail.append(ToolCallDelta(index=call.index, arguments=call.arguments[cut:]))
    return tuple(head), tuple(tail)


def whole_message(deltas: list[Delta]) -> tuple[Message, str]:
    """Return the message and the reasoning that an answer's deltas make."""
    calls: dict[int, ToolCall] = {}
    for piece in (call for delta in deltas for call in delta.tool_calls):
        call = calls.get(piece.index) or ToolCall(tool_call_id="", name="", arguments="")
        calls[piece.index] = ToolCall(
            tool_call_id=call.tool_call_id or piece.tool_call_id,
            name=call.name + piece.name,
            arguments=call.arguments + piece.arguments,
        )
    content = "".join(delta.content for delta in deltas)
    message = Message(
        role=Role.ASSISTANT,
        parts=(content,) if content else (),
        tool_calls=tuple(calls[index] for index in sorted(calls)),
    )
    return message, "".join(delta.reasoning_content for delta in deltas)

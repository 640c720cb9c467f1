"""Messages and tools of a request: from the wire to the domain, with everything that is wrong with them.

A text with a NUL is refused: a backend written in C ends it there and would run another prompt than was counted (L8).
"""

import re
from collections.abc import Iterable, Sequence

import msgspec

from metergate.core.inference import Message, Role, Tool, ToolCall
from metergate.edges.violations import Violations
from metergate.v1 import chat_pb2

# What the protos promise.
MESSAGES_MAX = 1024
TOOLS_MAX = 128

# Content parts and tool calls of all messages together. Four bytes make an empty part: a request within its size could
# have a million, and hold the event loop for seconds.
PIECES_MAX = 4096

# Ids are made by backends, whose answers are held to the same bound.
TOOL_CALL_ID_CHARACTERS_MAX = 128

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_ROLES: dict[int, Role] = {chat_pb2.Role.Value(f"ROLE_{role}"): role for role in Role}

# Reads the outermost object only; what is inside is checked for syntax and skipped.
_json_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_messages(messages: Sequence[chat_pb2.Message], path: str, violations: Violations) -> tuple[Message, ...]:
    """The conversation."""
    if not 1 <= len(messages) <= MESSAGES_MAX:
        violations.add(path, f"must have 1 to {MESSAGES_MAX} messages, not {len(messages)}")
        return ()
    pieces = sum(len(message.content_parts) + len(message.tool_calls) for message in messages)
    if pieces > PIECES_MAX:
        violations.add(path, f"must have at most {PIECES_MAX} content parts and tool calls, not {pieces}")
        return ()
    called: set[str] = set()
    return tuple(
        _read_message(message, f"{path}[{index}]", called, violations) for index, message in enumerate(messages)
    )


def read_tools(tools: Sequence[chat_pb2.Tool], path: str, violations: Violations) -> tuple[Tool, ...]:
    """The functions that the model may ask for."""
    if len(tools) > TOOLS_MAX:
        violations.add(path, f"must have at most {TOOLS_MAX} tools, not {len(tools)}")
        return ()
    names: set[str] = set()
    for index, tool in enumerate(tools):
        below = f"{path}[{index}]"
        _check_function_name(tool.name, f"{below}.name", violations)
        if tool.name in names:
            violations.add(f"{below}.name", "is the name of an earlier tool")
        names.add(tool.name)
        check_text(tool.description, f"{below}.description", violations)
        if tool.parameters_json_schema:
            check_json_object(tool.parameters_json_schema, f"{below}.parameters_json_schema", violations)
    return tuple(
        Tool(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters_json_schema)
        for tool in tools
    )


def check_text(text: str, path: str, violations: Violations) -> None:
    """Record a text that the gateway and a backend could read differently."""
    if "\0" in text:
        violations.add(path, "must not have a NUL character")


def check_json_object(text: str, path: str, violations: Violations) -> None:
    """Record a text that is no JSON object."""
    try:
        _json_object.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        violations.add(path, "must be a JSON object")


def _check_function_name(name: str, path: str, violations: Violations) -> None:
    if not FUNCTION_NAME.fullmatch(name):
        violations.add(path, "must be 1 to 64 of a-z, A-Z, 0-9, underscore and dash")


def _read_message(message: chat_pb2.Message, path: str, called: set[str], violations: Violations) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        violations.add(f"{path}.role", f"is no role: {message.role}")
    else:
        _check_tool_fields(message, role, path, called, violations)
    if not message.content_parts and not message.tool_calls:
        violations.add(f"{path}.content_parts", "must have at least one part")
    return Message(
        role=role or Role.USER,
        parts=tuple(_read_parts(message.content_parts, path, violations)),
        tool_calls=tuple(_read_tool_calls(message.tool_calls, path, called, violations)),
        tool_call_id=message.tool_call_id,
    )


def _check_tool_fields(
    message: chat_pb2.Message, role: Role, path: str, called: set[str], violations: Violations
) -> None:
    if message.tool_calls and role is not Role.ASSISTANT:
        violations.add(f"{path}.tool_calls", "may only be of an ASSISTANT")
    if role is Role.TOOL:
        if message.tool_call_id not in called:
            violations.add(f"{path}.tool_call_id", "must be the tool_call_id of an earlier tool call")
    elif message.tool_call_id:
        violations.add(f"{path}.tool_call_id", "may only be of a TOOL")


def _read_parts(parts: Iterable[chat_pb2.ContentPart], path: str, violations: Violations) -> Iterable[str]:
    for index, part in enumerate(parts):
        if not part.HasField("text"):
            violations.add(f"{path}.content_parts[{index}]", "must have a part of a kind that can be counted")
        text = part.text
        if "\0" in text:  # asked here too: a path for every part of every prompt would be most of reading it
            check_text(text, f"{path}.content_parts[{index}].text", violations)
        yield text


def _read_tool_calls(
    calls: Iterable[chat_pb2.ToolCall], path: str, called: set[str], violations: Violations
) -> Iterable[ToolCall]:
    for index, call in enumerate(calls):
        below = f"{path}.tool_calls[{index}]"
        if not 1 <= len(call.tool_call_id) <= TOOL_CALL_ID_CHARACTERS_MAX:
            violations.add(f"{below}.tool_call_id", f"must be 1 to {TOOL_CALL_ID_CHARACTERS_MAX} characters")
        check_text(call.tool_call_id, f"{below}.tool_call_id", violations)
        _check_function_name(call.name, f"{below}.name", violations)
        check_text(call.arguments, f"{below}.arguments", violations)
        called.add(call.tool_call_id)
        yield ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments)

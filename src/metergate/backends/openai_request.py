"""What an OpenAI-compatible server is sent. Pure: the domain on one side, bytes on the other.

The request is an allow-list: nothing is sent that the gateway did not understand.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from metergate.core.errors import BackendRejected
from metergate.core.inference import (
    BackendRequest,
    Message,
    ResponseFormat,
    ResponseFormatKind,
    Tool,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.core.parameters import Parameter, parameters_of

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


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

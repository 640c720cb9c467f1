"""Inference requests: from the wire to the domain. Everything that is wrong is told at once, by field."""

from collections.abc import Callable, Sequence
from typing import Any

from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.embedding import INPUTS_MAX, EmbeddingRequest
from metergate.core.inference import (
    DEFAULT_RESPONSE_FORMAT,
    DEFAULT_SAMPLING,
    DEFAULT_TOOL_CHOICE,
    InferenceRequest,
    Prompt,
    ResponseFormat,
    ResponseFormatKind,
    Sampling,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.edges.prompts import FUNCTION_NAME, check_json_object, check_text, read_messages, read_tools
from metergate.edges.resources import parse_model
from metergate.edges.violations import Violations
from metergate.v1 import chat_pb2, inference_pb2

# What the protos promise.
REQUEST_ID_CHARACTERS_MAX = 128
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
TOP_K_MAX = 1_000_000

# A wallet or model name in a violation would be the app's own text; the form is told instead.
_MODEL_FORM = "must be models/{model}"

_TOOL_CHOICES: dict[int, ToolChoiceKind] = {
    chat_pb2.TOOL_CHOICE_MODE_AUTO: ToolChoiceKind.AUTO,
    chat_pb2.TOOL_CHOICE_MODE_NONE: ToolChoiceKind.AUTO,  # of no tools
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceKind.REQUIRED,
}


def read_inference(
    request: inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest,
) -> InferenceRequest:
    """What an app asks a model to do; RequestInvalid with every field that is wrong."""
    violations = Violations()
    if not request.HasField("inference"):
        violations.add("inference", "is required")
        violations.check()
    inference = request.inference
    _check_request_id(inference.request_id, "inference.request_id", violations)
    # Read also where the model must not call them, so that a wrong one is told all the same.
    tools = read_tools(inference.tools, "inference.tools", violations)
    withholds_tools = inference.tool_choice.mode == chat_pb2.TOOL_CHOICE_MODE_NONE
    inference_request = InferenceRequest(
        request_id=inference.request_id,
        model_id=_read_model(inference.model, "inference.model", violations),
        prompt=Prompt(
            messages=read_messages(inference.messages, "inference.messages", violations),
            tools=() if withholds_tools else tools,
        ),
        sampling=_read_sampling(inference, violations),
        response_format=_read_response_format(inference, violations),
        tool_choice=_read_tool_choice(inference, violations),
        max_completion_tokens=_read_max_completion_tokens(inference, "inference.", violations),
        credit_limit_microcredits=_read_credit_limit(inference, "inference.", violations),
    )
    violations.check()
    return inference_request


def read_count(request: inference_pb2.CountTokensRequest) -> tuple[str, Prompt, int | None]:
    """The model's id, the prompt and max_completion_tokens; RequestInvalid with every field that is wrong."""
    violations = Violations()
    model_id = _read_model(request.model, "model", violations)
    messages = read_messages(request.messages, "messages", violations)
    tools = read_tools(request.tools, "tools", violations)
    max_completion_tokens = _read_max_completion_tokens(request, "", violations)
    violations.check()
    return model_id, Prompt(messages=messages, tools=tools), max_completion_tokens


def read_input_count(request: inference_pb2.CountTokensRequest) -> tuple[str, tuple[str, ...]]:
    """The model's id and the texts that would be embedded; RequestInvalid with every field that is wrong."""
    violations = Violations()
    model_id = _read_model(request.model, "model", violations)
    if request.messages or request.tools or request.HasField("max_completion_tokens"):
        # Which of the two is meant cannot be guessed, and each has its own count.
        violations.add("inputs", "must not come with messages, tools or max_completion_tokens")
    inputs = _read_inputs(request.inputs, violations)
    violations.check()
    return model_id, inputs


def read_embedding(request: inference_pb2.EmbedRequest) -> EmbeddingRequest:
    """The texts that an app wants vectors of; RequestInvalid with every field that is wrong."""
    violations = Violations()
    _check_request_id(request.request_id, "request_id", violations)
    if request.HasField("dimensions") and request.dimensions < 1:
        violations.add("dimensions", "must be 1 or more")
    embedding_request = EmbeddingRequest(
        request_id=request.request_id,
        model_id=_read_model(request.model, "model", violations),
        inputs=_read_inputs(request.inputs, violations),
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        credit_limit_microcredits=_read_credit_limit(request, "", violations),
    )
    violations.check()
    return embedding_request


def _read_inputs(inputs: Sequence[str], violations: Violations) -> tuple[str, ...]:
    if not 1 <= len(inputs) <= INPUTS_MAX:
        violations.add("inputs", f"must have 1 to {INPUTS_MAX} texts, not {len(inputs)}")
        return ()
    for index, text in enumerate(inputs):
        if not text:
            violations.add(f"inputs[{index}]", "must not be empty")
        check_text(text, f"inputs[{index}]", violations)
    return tuple(inputs)


def _check_request_id(request_id: str, path: str, violations: Violations) -> None:
    if not 1 <= len(request_id) <= REQUEST_ID_CHARACTERS_MAX or not request_id.isprintable():
        violations.add(path, f"must be 1 to {REQUEST_ID_CHARACTERS_MAX} printable characters")


def _read_model(name: str, path: str, violations: Violations) -> str:
    model_id = parse_model(name)
    if model_id is None:
        violations.add(path, _MODEL_FORM)
    return model_id or ""


def _read_max_completion_tokens(
    holder: inference_pb2.Inference | inference_pb2.CountTokensRequest, prefix: str, violations: Violations
) -> int | None:
    if not holder.HasField("max_completion_tokens"):
        return None
    if holder.max_completion_tokens < 1:
        violations.add(f"{prefix}max_completion_tokens", "must be 1 or more")
    return holder.max_completion_tokens


def _read_credit_limit(
    holder: inference_pb2.Inference | inference_pb2.EmbedRequest, prefix: str, violations: Violations
) -> int | None:
    if not holder.HasField("credit_limit_microcredits"):
        return None
    if not 1 <= holder.credit_limit_microcredits <= AMOUNT_MICROCREDITS_MAX:
        violations.add(f"{prefix}credit_limit_microcredits", "must be 1 to 2^62")
    return holder.credit_limit_microcredits


# Each number of a Sampling with what it may be; written so that NaN, which compares false with everything, is refused.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "must be 0 to 2"),
    "top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "top_k": (lambda value: 1 <= value <= TOP_K_MAX, f"must be 1 to {TOP_K_MAX}"),
    "min_p": (lambda value: 0 <= value <= 1, "must be 0 to 1"),
    "seed": (lambda value: True, ""),
    "presence_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
}


def _read_sampling(inference: inference_pb2.Inference, violations: Violations) -> Sampling:
    if not inference.HasField("sampling"):
        return DEFAULT_SAMPLING
    sampling, path = inference.sampling, "inference.sampling"
    values: dict[str, Any] = {}
    for name, (is_right, description) in _RANGES.items():
        if not sampling.HasField(name):  # type: ignore[arg-type]
            continue
        values[name] = getattr(sampling, name)
        if not is_right(values[name]):
            violations.add(f"{path}.{name}", description)
    return Sampling(stop=_read_stop(sampling, path, violations), **values)


def _read_stop(sampling: chat_pb2.Sampling, path: str, violations: Violations) -> tuple[str, ...]:
    if len(sampling.stop) > STOPS_MAX:
        violations.add(f"{path}.stop", f"must have at most {STOPS_MAX} texts, not {len(sampling.stop)}")
        return ()
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= STOP_CHARACTERS_MAX:
            violations.add(f"{path}.stop[{index}]", f"must have 1 to {STOP_CHARACTERS_MAX} characters")
        check_text(stop, f"{path}.stop[{index}]", violations)
    return tuple(sampling.stop)


def _read_response_format(inference: inference_pb2.Inference, violations: Violations) -> ResponseFormat:
    response_format = inference.response_format
    if response_format.HasField("json_object"):
        return ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT)
    if not response_format.HasField("json_schema"):
        return DEFAULT_RESPONSE_FORMAT
    path = "inference.response_format.json_schema"
    json_schema = response_format.json_schema
    if not FUNCTION_NAME.fullmatch(json_schema.name):
        violations.add(f"{path}.name", "must be 1 to 64 of a-z, A-Z, 0-9, underscore and dash")
    check_json_object(json_schema.schema, f"{path}.schema", violations)
    return ResponseFormat(
        kind=ResponseFormatKind.JSON_SCHEMA, schema_name=json_schema.name, json_schema=json_schema.schema
    )


def _read_tool_choice(inference: inference_pb2.Inference, violations: Violations) -> ToolChoice:
    """How the model may call tools; whether it may at all was read with the tools."""
    path = "inference.tool_choice"
    if not inference.HasField("tool_choice"):
        return DEFAULT_TOOL_CHOICE
    if not inference.tools:
        violations.add(path, "needs tools")
    choice = inference.tool_choice
    if choice.HasField("function"):
        if all(choice.function != tool.name for tool in inference.tools):
            violations.add(f"{path}.function", "must be the name of a tool of the request")
        return ToolChoice(kind=ToolChoiceKind.FUNCTION, function=choice.function)
    kind = _TOOL_CHOICES.get(choice.mode)
    if kind is None:
        violations.add(f"{path}.mode", f"is no choice: {choice.mode}")
    return ToolChoice(kind=kind or ToolChoiceKind.AUTO)

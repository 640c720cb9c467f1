"""Inference requests: from the wire to the domain. Everything that is wrong is told at once, by field."""

from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.inference import InferenceRequest, Prompt, ResponseFormat, ResponseFormatKind, Sampling
from metergate.edges.prompts import FUNCTION_NAME, check_json_object, check_text, read_messages, read_tools
from metergate.edges.resources import parse_model
from metergate.edges.violations import Violations
from metergate.v1 import chat_pb2, inference_pb2

# What the protos promise.
REQUEST_ID_CHARACTERS_MAX = 128
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256

# A wallet or model name in a violation would be the app's own text; the form is told instead.
_MODEL_FORM = "must be models/{model}"


def read_inference(
    request: inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest,
) -> InferenceRequest:
    """What an app asks a model to do; RequestInvalid with every field that is wrong."""
    violations = Violations()
    if not request.HasField("inference"):
        violations.add("inference", "is required")
        violations.check()
    inference = request.inference
    _check_request_id(inference.request_id, violations)
    inference_request = InferenceRequest(
        request_id=inference.request_id,
        model_id=_read_model(inference.model, "inference.model", violations),
        prompt=Prompt(
            messages=read_messages(inference.messages, "inference.messages", violations),
            tools=read_tools(inference.tools, "inference.tools", violations),
        ),
        sampling=_read_sampling(inference.sampling, "inference.sampling", violations),
        response_format=_read_response_format(inference.response_format, violations),
        max_completion_tokens=_read_max_completion_tokens(inference, "inference.", violations),
        credit_limit_microcredits=_read_credit_limit(inference, violations),
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


def _check_request_id(request_id: str, violations: Violations) -> None:
    if not 1 <= len(request_id) <= REQUEST_ID_CHARACTERS_MAX or not request_id.isprintable():
        violations.add("inference.request_id", f"must be 1 to {REQUEST_ID_CHARACTERS_MAX} printable characters")


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


def _read_credit_limit(inference: inference_pb2.Inference, violations: Violations) -> int | None:
    if not inference.HasField("credit_limit_microcredits"):
        return None
    if not 1 <= inference.credit_limit_microcredits <= AMOUNT_MICROCREDITS_MAX:
        violations.add("inference.credit_limit_microcredits", "must be 1 to 2^62")
    return inference.credit_limit_microcredits


def _read_sampling(sampling: chat_pb2.Sampling, path: str, violations: Violations) -> Sampling:
    temperature = sampling.temperature if sampling.HasField("temperature") else None
    top_p = sampling.top_p if sampling.HasField("top_p") else None
    presence = sampling.presence_penalty if sampling.HasField("presence_penalty") else None
    frequency = sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None
    # Written so that NaN, which compares false with everything, is refused.
    if temperature is not None and not 0 <= temperature <= 2:
        violations.add(f"{path}.temperature", "must be 0 to 2")
    if top_p is not None and not 0 < top_p <= 1:
        violations.add(f"{path}.top_p", "must be above 0 and at most 1")
    if presence is not None and not -2 <= presence <= 2:
        violations.add(f"{path}.presence_penalty", "must be -2 to 2")
    if frequency is not None and not -2 <= frequency <= 2:
        violations.add(f"{path}.frequency_penalty", "must be -2 to 2")
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        stop=_read_stop(sampling, path, violations),
        seed=sampling.seed if sampling.HasField("seed") else None,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )


def _read_stop(sampling: chat_pb2.Sampling, path: str, violations: Violations) -> tuple[str, ...]:
    if len(sampling.stop) > STOPS_MAX:
        violations.add(f"{path}.stop", f"must have at most {STOPS_MAX} texts, not {len(sampling.stop)}")
        return ()
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= STOP_CHARACTERS_MAX:
            violations.add(f"{path}.stop[{index}]", f"must have 1 to {STOP_CHARACTERS_MAX} characters")
        check_text(stop, f"{path}.stop[{index}]", violations)
    return tuple(sampling.stop)


def _read_response_format(response_format: chat_pb2.ResponseFormat, violations: Violations) -> ResponseFormat:
    if response_format.HasField("json_object"):
        return ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT)
    if not response_format.HasField("json_schema"):
        return ResponseFormat()
    path = "inference.response_format.json_schema"
    json_schema = response_format.json_schema
    if not FUNCTION_NAME.fullmatch(json_schema.name):
        violations.add(f"{path}.name", "must be 1 to 64 of a-z, A-Z, 0-9, underscore and dash")
    check_json_object(json_schema.schema, f"{path}.schema", violations)
    return ResponseFormat(
        kind=ResponseFormatKind.JSON_SCHEMA, schema_name=json_schema.name, json_schema=json_schema.schema
    )

"""What a request may set beyond its messages and bounds, and which of it a model's backends take (L8).

Every parameter is on this list, or it is not passed on. Each kind of backend says, in its adapter, which of them it can
say to a server, and how; the configuration names which of those a server takes. None of them changes what a prompt
counts, but for tools, which are counted.
"""

from collections.abc import Set
from enum import StrEnum

from metergate.core.errors import RequestInvalid, Violation
from metergate.core.inference import (
    DEFAULT_SAMPLING,
    BackendRequest,
    InferenceRequest,
    ResponseFormatKind,
    Role,
    Sampling,
    ToolChoiceKind,
)


class Parameter(StrEnum):
    """One of them: its path in an Inference."""

    TEMPERATURE = "sampling.temperature"
    TOP_P = "sampling.top_p"
    TOP_K = "sampling.top_k"
    MIN_P = "sampling.min_p"
    STOP = "sampling.stop"
    SEED = "sampling.seed"
    PRESENCE_PENALTY = "sampling.presence_penalty"
    FREQUENCY_PENALTY = "sampling.frequency_penalty"
    TOOLS = "tools"
    TOOL_CHOICE = "tool_choice"
    JSON_OBJECT = "response_format.json_object"
    JSON_SCHEMA = "response_format.json_schema"
    # A conversation that ends with the model's own turn. Some servers go on with that turn and send it again at the
    # start of their answer: another prompt than was counted, and an app would be charged for text of its own.
    ASSISTANT_LAST = "messages.assistant_last"


ALL_PARAMETERS = frozenset(Parameter)

_FORMATS = {
    ResponseFormatKind.JSON_OBJECT: Parameter.JSON_OBJECT,
    ResponseFormatKind.JSON_SCHEMA: Parameter.JSON_SCHEMA,
}


def parameters_of(request: InferenceRequest | BackendRequest) -> list[Parameter]:
    """What a request sets."""
    prompt = request.prompt
    found = [] if request.sampling is DEFAULT_SAMPLING else _sampling_parameters(request.sampling)
    if prompt.tools:
        found.append(Parameter.TOOLS)
    if request.tool_choice.kind is not ToolChoiceKind.AUTO:
        found.append(Parameter.TOOL_CHOICE)
    if prompt.messages and prompt.messages[-1].role is Role.ASSISTANT:
        found.append(Parameter.ASSISTANT_LAST)
    if request.response_format.kind is not ResponseFormatKind.TEXT:
        found.append(_FORMATS[request.response_format.kind])
    return found


def _sampling_parameters(sampling: Sampling) -> list[Parameter]:
    is_set = (
        (Parameter.TEMPERATURE, sampling.temperature is not None),
        (Parameter.TOP_P, sampling.top_p is not None),
        (Parameter.TOP_K, sampling.top_k is not None),
        (Parameter.MIN_P, sampling.min_p is not None),
        (Parameter.STOP, bool(sampling.stop)),
        (Parameter.SEED, sampling.seed is not None),
        (Parameter.PRESENCE_PENALTY, sampling.presence_penalty is not None),
        (Parameter.FREQUENCY_PENALTY, sampling.frequency_penalty is not None),
    )
    return [parameter for parameter, it_is in is_set if it_is]


def check_parameters(request: InferenceRequest, taken: Set[Parameter]) -> None:
    """RequestInvalid, naming each, if the request sets what its model's backends do not take."""
    refused = [parameter for parameter in parameters_of(request) if parameter not in taken]
    if refused:
        raise RequestInvalid(*(_violation(parameter, request) for parameter in refused))


def _violation(parameter: Parameter, request: InferenceRequest) -> Violation:
    if parameter is Parameter.ASSISTANT_LAST:
        field = f"messages[{len(request.prompt.messages) - 1}].role"
        return Violation(field, f"must not be ASSISTANT in the last message to {request.model_id}")
    return Violation(parameter, f"is not taken by {request.model_id}")

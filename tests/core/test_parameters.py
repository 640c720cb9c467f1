"""A request that sets what its model's backends do not take is refused, by the field's name."""

from typing import Any

import pytest

from metergate.core.errors import RequestInvalid
from metergate.core.inference import (
    InferenceRequest,
    Message,
    Prompt,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.core.parameters import ALL_PARAMETERS, Parameter, check_parameters

USER, ASSISTANT = Message(role=Role.USER, parts=("hi",)), Message(role=Role.ASSISTANT, parts=("ho",))
TOOLS = Prompt(messages=(USER,), tools=(Tool(name="f"),))


def request(**changes: Any) -> InferenceRequest:
    values: dict[str, Any] = {"request_id": "r", "model_id": "m", "prompt": Prompt(messages=(USER,))}
    return InferenceRequest(**(values | changes))


CASES: list[tuple[Parameter, str, InferenceRequest]] = [
    (Parameter.TEMPERATURE, "sampling.temperature", request(sampling=Sampling(temperature=0.0))),
    (Parameter.TOP_P, "sampling.top_p", request(sampling=Sampling(top_p=1.0))),
    (Parameter.TOP_K, "sampling.top_k", request(sampling=Sampling(top_k=1))),
    (Parameter.MIN_P, "sampling.min_p", request(sampling=Sampling(min_p=0.0))),
    (Parameter.STOP, "sampling.stop", request(sampling=Sampling(stop=("x",)))),
    (Parameter.SEED, "sampling.seed", request(sampling=Sampling(seed=0))),
    (Parameter.PRESENCE_PENALTY, "sampling.presence_penalty", request(sampling=Sampling(presence_penalty=0.0))),
    (Parameter.FREQUENCY_PENALTY, "sampling.frequency_penalty", request(sampling=Sampling(frequency_penalty=0.0))),
    (Parameter.TOOLS, "tools", request(prompt=TOOLS)),
    (
        Parameter.TOOL_CHOICE,
        "tool_choice",
        request(prompt=TOOLS, tool_choice=ToolChoice(kind=ToolChoiceKind.REQUIRED)),
    ),
    (
        Parameter.JSON_OBJECT,
        "response_format.json_object",
        request(response_format=ResponseFormat(kind=ResponseFormatKind.JSON_OBJECT)),
    ),
    (
        Parameter.JSON_SCHEMA,
        "response_format.json_schema",
        request(response_format=ResponseFormat(kind=ResponseFormatKind.JSON_SCHEMA, schema_name="s", json_schema="{}")),
    ),
    (Parameter.ASSISTANT_LAST, "messages[1].role", request(prompt=Prompt(messages=(USER, ASSISTANT)))),
]


def test_every_parameter_has_its_case() -> None:
    assert {parameter for parameter, _, _ in CASES} == ALL_PARAMETERS


@pytest.mark.parametrize(("parameter", "field", "asked"), CASES)
def test_a_parameter_that_is_not_taken_is_refused_by_its_field(
    parameter: Parameter, field: str, asked: InferenceRequest
) -> None:
    with pytest.raises(RequestInvalid) as caught:
        check_parameters(asked, ALL_PARAMETERS - {parameter})
    assert [violation.field for violation in caught.value.violations] == [field]
    check_parameters(asked, ALL_PARAMETERS)


def test_a_plain_request_sets_nothing_and_an_assistant_may_be_anywhere_but_last() -> None:
    check_parameters(request(), frozenset())
    check_parameters(request(prompt=Prompt(messages=(ASSISTANT, USER))), frozenset())


def test_all_that_is_not_taken_is_told_at_once() -> None:
    with pytest.raises(RequestInvalid) as caught:
        check_parameters(request(sampling=Sampling(top_k=1, seed=1)), frozenset())
    assert {violation.field for violation in caught.value.violations} == {"sampling.top_k", "sampling.seed"}

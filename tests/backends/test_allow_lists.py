"""What passes to a backend is a list a kind: everything on it arrives, and nothing that is not on it."""

import json
from typing import Any

import pytest
from backend_requests import a_request
from google.protobuf.json_format import MessageToDict

from metergate.backends import grpc, openai_request
from metergate.core.errors import BackendRejected
from metergate.core.inference import (
    BackendRequest,
    Message,
    Prompt,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.core.parameters import ALL_PARAMETERS, Parameter, parameters_of

USER = Message(role=Role.USER, parts=("hello",))
SAMPLING = Sampling(
    temperature=0.5,
    top_p=0.75,
    top_k=40,
    min_p=0.25,
    stop=("END",),
    seed=7,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
)
TOOL = Tool(name="look_up", description="Looks up.", parameters_json_schema='{"type": "object"}')


FULL = a_request(
    prompt=Prompt(
        messages=(
            USER,
            Message(role=Role.ASSISTANT, tool_calls=(ToolCall(tool_call_id="t1", name="look_up", arguments="{}"),)),
            Message(role=Role.TOOL, parts=("found",), tool_call_id="t1"),
            Message(role=Role.ASSISTANT, parts=("So",)),
        ),
        tools=(TOOL,),
    ),
    sampling=SAMPLING,
    response_format=ResponseFormat(
        kind=ResponseFormatKind.JSON_SCHEMA, schema_name="answer", json_schema='{"type": "object", "n": 5}'
    ),
    tool_choice=ToolChoice(kind=ToolChoiceKind.FUNCTION, function="look_up"),
)

# What the body of an OpenAI-compatible request may have; nothing else is ever sent.
OPENAI_BODY = {
    "model",
    "messages",
    "max_tokens",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "response_format",
}


def openai_body(asked: BackendRequest) -> dict[str, Any]:
    encoded = openai_request.encode_request(
        asked, model="m", stream=True, include_usage=True, max_tokens_field="max_tokens"
    )
    body = json.loads(encoded)
    assert isinstance(body, dict)
    return body


def test_the_full_request_sets_every_parameter_but_the_other_format() -> None:
    assert set(parameters_of(FULL)) == ALL_PARAMETERS - {Parameter.JSON_OBJECT}


def test_each_kind_of_backend_can_say_every_parameter() -> None:
    assert grpc.PARAMETERS == openai_request.PARAMETERS == ALL_PARAMETERS


def test_an_openai_backend_gets_what_was_asked_and_no_field_beyond_the_list() -> None:
    body = openai_body(FULL)
    assert set(body) == OPENAI_BODY
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "stop", "seed")} == {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 40,
        "min_p": 0.25,
        "stop": ["END"],
        "seed": 7,
    }
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.5, -0.5)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look_up"}}
    assert body["stream_options"] == {"include_usage": True}
    assert set(body["messages"][1]) == {"role", "content", "tool_calls"}
    assert set(body["messages"][2]) == {"role", "content", "tool_call_id"}
    assert set(body["messages"][3]) == {"role", "content"}  # no prefix, no prefill


def test_what_is_not_set_is_not_sent() -> None:
    assert set(openai_body(a_request())) == {"model", "messages", "max_tokens", "stream", "stream_options"}


def test_a_zero_is_set() -> None:
    body = openai_body(a_request(sampling=Sampling(temperature=0.0, seed=0, presence_penalty=0.0)))
    assert (body["temperature"], body["seed"], body["presence_penalty"]) == (0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [(ToolChoiceKind.REQUIRED, "required"), (ToolChoiceKind.AUTO, None)],
)
def test_a_choice_of_tools_is_said_as_openai_does(choice: ToolChoiceKind, sent: str | None) -> None:
    prompt = Prompt(messages=(USER,), tools=(TOOL,))
    assert openai_body(a_request(prompt=prompt, tool_choice=ToolChoice(kind=choice))).get("tool_choice") == sent


def test_a_native_backend_gets_all_of_it() -> None:
    message = grpc.encode_request(FULL, model="m")
    assert set(MessageToDict(message, preserving_proto_field_name=True)) == {
        field.name for field in message.DESCRIPTOR.fields
    }
    assert set(MessageToDict(message.sampling, preserving_proto_field_name=True)) == {
        field.name for field in message.sampling.DESCRIPTOR.fields
    }
    assert message.tool_choice.function == "look_up"


@pytest.mark.parametrize("parameter", sorted(set(parameters_of(FULL))))
def test_a_parameter_that_a_protocol_cannot_say_is_refused_and_never_left_out(
    parameter: Parameter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc, "PARAMETERS", grpc.PARAMETERS - {parameter})
    fewer = {kind: write for kind, write in openai_request._PARAMETERS.items() if kind is not parameter}
    monkeypatch.setattr(openai_request, "_PARAMETERS", fewer)
    with pytest.raises(BackendRejected, match=parameter):
        grpc.encode_request(FULL, model="m")
    with pytest.raises(BackendRejected, match=parameter):
        openai_body(FULL)

import math
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from hypothesis import example, given
from hypothesis import strategies as st

from metergate.core.embedding import EmbeddingRequest
from metergate.core.errors import RequestInvalid
from metergate.core.inference import (
    InferenceRequest,
    Message,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceKind,
)
from metergate.edges.calls import decode
from metergate.edges.requests import read_count, read_embedding, read_inference
from metergate.v1 import account_pb2, catalog_pb2, chat_pb2, inference_pb2

Change = Callable[[inference_pb2.Inference], object]


def said(role: int, text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, content_parts=[chat_pb2.ContentPart(text=text)])  # type: ignore[arg-type]


def an_inference() -> inference_pb2.Inference:
    return inference_pb2.Inference(
        request_id="q-1", model="models/small", messages=[said(chat_pb2.ROLE_USER, "Why is the sky blue?")]
    )


def read(inference: inference_pb2.Inference) -> InferenceRequest:
    data = inference_pb2.CompleteRequest(inference=inference).SerializeToString()
    request = decode(data, inference_pb2.CompleteRequest)
    assert isinstance(request, inference_pb2.CompleteRequest)
    return read_inference(request)


def fields_refused(inference: inference_pb2.Inference) -> list[str]:
    with pytest.raises(RequestInvalid) as caught:
        read(inference)
    return [violation.field for violation in caught.value.violations]


def test_a_whole_request_arrives_in_the_domains_words() -> None:
    inference = an_inference()
    inference.messages.insert(0, said(chat_pb2.ROLE_SYSTEM, "Be brief."))
    call = chat_pb2.ToolCall(tool_call_id="t1", name="look_up", arguments='{"word": "sky')
    inference.messages.append(chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[call]))
    answer = said(chat_pb2.ROLE_TOOL, "")
    answer.tool_call_id = "t1"
    inference.messages.append(answer)
    inference.tools.add(name="look_up", description="Looks up.", parameters_json_schema=' {"type": "object"} ')
    inference.sampling.CopyFrom(chat_pb2.Sampling(temperature=0, top_p=1, stop=["\n"], seed=-1, presence_penalty=-2))
    inference.response_format.json_schema.name = "answer"
    inference.response_format.json_schema.schema = "{}"
    inference.max_completion_tokens = 5
    inference.credit_limit_microcredits = 2**62

    request = read(inference)

    assert (request.request_id, request.model_id) == ("q-1", "small")
    assert request.prompt.messages == (
        Message(role=Role.SYSTEM, parts=("Be brief.",)),
        Message(role=Role.USER, parts=("Why is the sky blue?",)),
        Message(
            role=Role.ASSISTANT,
            tool_calls=(ToolCall(tool_call_id="t1", name="look_up", arguments='{"word": "sky'),),
        ),
        Message(role=Role.TOOL, parts=("",), tool_call_id="t1"),
    )
    assert request.prompt.tools == (
        Tool(name="look_up", description="Looks up.", parameters_json_schema=' {"type": "object"} '),
    )
    assert request.sampling == Sampling(temperature=0, top_p=1, stop=("\n",), seed=-1, presence_penalty=-2)
    assert request.response_format.kind is ResponseFormatKind.JSON_SCHEMA
    assert (request.max_completion_tokens, request.credit_limit_microcredits) == (5, 2**62)


def test_what_is_not_set_is_left_open() -> None:
    request = read(an_inference())
    assert request.sampling == Sampling()
    assert request.response_format.kind is ResponseFormatKind.TEXT
    assert request.max_completion_tokens is None
    assert request.credit_limit_microcredits is None


def add_message(message: chat_pb2.Message) -> Change:
    return lambda inference: inference.messages.append(message)


def set_sampling(**values: object) -> Change:
    return lambda inference: inference.sampling.CopyFrom(chat_pb2.Sampling(**values))  # type: ignore[arg-type]


def set_field(**values: object) -> Change:
    def change(inference: inference_pb2.Inference) -> None:
        for name, value in values.items():
            setattr(inference, name, value)

    return change


def add_tools(*tools: chat_pb2.Tool) -> Change:
    return lambda inference: inference.tools.extend(tools)


def set_tool_choice(*tools: str, **choice: object) -> Change:
    def change(inference: inference_pb2.Inference) -> None:
        inference.tools.extend(chat_pb2.Tool(name=name) for name in tools)
        inference.tool_choice.CopyFrom(chat_pb2.ToolChoice(**choice))  # type: ignore[arg-type]

    return change


def set_schema(name: str, schema: str) -> Change:
    json_schema = chat_pb2.ResponseFormat.JsonSchemaFormat(name=name, schema=schema)
    return lambda inference: inference.response_format.CopyFrom(chat_pb2.ResponseFormat(json_schema=json_schema))


ASSISTANT, USER, SYSTEM, TOOL = (
    chat_pb2.ROLE_ASSISTANT,
    chat_pb2.ROLE_USER,
    chat_pb2.ROLE_SYSTEM,
    chat_pb2.ROLE_TOOL,
)
TOOL_CALL = chat_pb2.ToolCall(tool_call_id="t1", name="f")

BAD_FIELDS: list[tuple[str, Change]] = [
    ("inference.request_id", set_field(request_id="")),
    ("inference.request_id", set_field(request_id="x" * 129)),
    ("inference.request_id", set_field(request_id="a\nb")),
    ("inference.request_id", set_field(request_id="a\0")),
    ("inference.model", set_field(model="")),
    ("inference.model", set_field(model="small")),
    ("inference.model", set_field(model="models/../etc")),
    ("inference.messages", lambda inference: inference.ClearField("messages")),
    ("inference.messages", lambda inference: inference.messages.extend([said(USER, "x")] * 1024)),
    (
        "inference.messages",
        add_message(chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="")] * 4096)),
    ),
    ("inference.messages[1].role", add_message(said(0, "x"))),
    ("inference.messages[1].role", add_message(said(99, "x"))),
    ("inference.messages[1].role", add_message(said(-1, "x"))),
    ("inference.messages[1].content_parts", add_message(chat_pb2.Message(role=USER))),
    ("inference.messages[1].content_parts", add_message(chat_pb2.Message(role=SYSTEM))),
    ("inference.messages[1].content_parts", add_message(chat_pb2.Message(role=ASSISTANT))),
    (
        "inference.messages[1].content_parts[1]",
        add_message(
            chat_pb2.Message(role=USER, content_parts=[chat_pb2.ContentPart(text="x"), chat_pb2.ContentPart()])
        ),
    ),
    ("inference.messages[1].content_parts[0].text", add_message(said(USER, "a\0b"))),
    (
        "inference.messages[1].tool_calls",
        add_message(
            chat_pb2.Message(role=USER, content_parts=[chat_pb2.ContentPart(text="x")], tool_calls=[TOOL_CALL])
        ),
    ),
    (
        "inference.messages[1].tool_calls[0].tool_call_id",
        add_message(chat_pb2.Message(role=ASSISTANT, tool_calls=[chat_pb2.ToolCall(name="f")])),
    ),
    (
        "inference.messages[1].tool_calls[0].name",
        add_message(chat_pb2.Message(role=ASSISTANT, tool_calls=[chat_pb2.ToolCall(tool_call_id="t1")])),
    ),
    *[
        ("inference.messages[1].tool_calls[0].name", add_message(chat_pb2.Message(role=ASSISTANT, tool_calls=[call])))
        for call in (
            chat_pb2.ToolCall(tool_call_id="t1", name="f" * 65),
            chat_pb2.ToolCall(tool_call_id="t1", name="a poem"),
            chat_pb2.ToolCall(tool_call_id="t1", name="f\0"),
        )
    ],
    *[
        (
            "inference.messages[1].tool_calls[0].tool_call_id",
            add_message(
                chat_pb2.Message(role=ASSISTANT, tool_calls=[chat_pb2.ToolCall(tool_call_id=call_id, name="f")])
            ),
        )
        for call_id in ("t" * 129, "t\0")
    ],
    ("inference.messages[1].tool_call_id", add_message(said(TOOL, "x"))),
    (
        "inference.messages[1].tool_call_id",
        add_message(
            chat_pb2.Message(role=TOOL, content_parts=[chat_pb2.ContentPart(text="x")], tool_call_id="unheard-of")
        ),
    ),
    (
        "inference.messages[1].tool_call_id",
        add_message(chat_pb2.Message(role=USER, content_parts=[chat_pb2.ContentPart(text="x")], tool_call_id="t1")),
    ),
    ("inference.sampling.temperature", set_sampling(temperature=math.nan)),
    ("inference.sampling.temperature", set_sampling(temperature=-0.1)),
    ("inference.sampling.temperature", set_sampling(temperature=2.1)),
    ("inference.sampling.temperature", set_sampling(temperature=math.inf)),
    ("inference.sampling.top_p", set_sampling(top_p=0)),
    ("inference.sampling.top_p", set_sampling(top_p=1.1)),
    ("inference.sampling.top_p", set_sampling(top_p=math.nan)),
    ("inference.sampling.presence_penalty", set_sampling(presence_penalty=-2.1)),
    ("inference.sampling.presence_penalty", set_sampling(presence_penalty=math.nan)),
    ("inference.sampling.frequency_penalty", set_sampling(frequency_penalty=2.1)),
    ("inference.sampling.frequency_penalty", set_sampling(frequency_penalty=-math.inf)),
    *[("inference.sampling.top_k", set_sampling(top_k=top_k)) for top_k in (0, -1, 1_000_001)],
    *[("inference.sampling.min_p", set_sampling(min_p=min_p)) for min_p in (-0.1, 1.1, math.nan)],
    ("inference.sampling.stop", set_sampling(stop=["a"] * 5)),
    ("inference.sampling.stop[1]", set_sampling(stop=["a", ""])),
    ("inference.sampling.stop[0]", set_sampling(stop=["a" * 257])),
    ("inference.max_completion_tokens", set_field(max_completion_tokens=0)),
    ("inference.max_completion_tokens", set_field(max_completion_tokens=-1)),
    ("inference.credit_limit_microcredits", set_field(credit_limit_microcredits=0)),
    ("inference.credit_limit_microcredits", set_field(credit_limit_microcredits=-1)),
    ("inference.credit_limit_microcredits", set_field(credit_limit_microcredits=2**62 + 1)),
    ("inference.tools", add_tools(*[chat_pb2.Tool(name=f"f{number}") for number in range(129)])),
    ("inference.tools[0].name", add_tools(chat_pb2.Tool(name=""))),
    ("inference.tools[0].name", add_tools(chat_pb2.Tool(name="a b"))),
    ("inference.tools[0].name", add_tools(chat_pb2.Tool(name="a" * 65))),
    ("inference.tools[1].name", add_tools(chat_pb2.Tool(name="f"), chat_pb2.Tool(name="f"))),
    ("inference.tools[0].parameters_json_schema", add_tools(chat_pb2.Tool(name="f", parameters_json_schema="[]"))),
    ("inference.tools[0].parameters_json_schema", add_tools(chat_pb2.Tool(name="f", parameters_json_schema='{"a":'))),
    (
        "inference.tools[0].parameters_json_schema",
        add_tools(chat_pb2.Tool(name="f", parameters_json_schema='{"a":' * 10_000 + "1" + "}" * 10_000)),
    ),
    ("inference.tool_choice", set_tool_choice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)),
    ("inference.tool_choice", set_tool_choice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)),
    ("inference.tool_choice.mode", set_tool_choice("f")),
    ("inference.tool_choice.mode", set_tool_choice("f", mode=0)),
    ("inference.tool_choice.mode", set_tool_choice("f", mode=99)),
    ("inference.tool_choice.function", set_tool_choice("f", function="g")),
    ("inference.tool_choice.function", set_tool_choice("f", function="")),
    ("inference.response_format.json_schema.name", set_schema("", "{}")),
    ("inference.response_format.json_schema.schema", set_schema("answer", "")),
    ("inference.response_format.json_schema.schema", set_schema("answer", "null")),
]


@pytest.mark.parametrize(("field", "change"), BAD_FIELDS)
def test_each_bad_field_is_refused_by_its_path(field: str, change: Change) -> None:
    inference = an_inference()
    change(inference)
    assert fields_refused(inference) == [field]


def test_all_bad_fields_are_told_at_once() -> None:
    inference = an_inference()
    inference.request_id = ""
    inference.messages.append(said(99, "x"))
    inference.sampling.temperature = math.nan
    inference.max_completion_tokens = 0
    assert fields_refused(inference) == [
        "inference.request_id",
        "inference.messages[1].role",
        "inference.sampling.temperature",
        "inference.max_completion_tokens",
    ]


def test_a_thousand_bad_fields_do_not_cost_a_thousand_violations() -> None:
    inference = an_inference()
    inference.messages.extend([said(99, "x")] * 1000)
    assert len(fields_refused(inference)) <= 16


def test_a_request_without_an_inference_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="inference: is required"):
        read_inference(inference_pb2.StreamCompleteRequest())


def test_counting_tells_paths_of_its_own_request() -> None:
    request = inference_pb2.CountTokensRequest(model="small", messages=[said(99, "x")], max_completion_tokens=0)
    with pytest.raises(RequestInvalid) as caught:
        read_count(request)
    assert [violation.field for violation in caught.value.violations] == [
        "model",
        "messages[0].role",
        "max_completion_tokens",
    ]


def unknown_field(number: int) -> bytes:
    return chat_pb2.Tool(name="future").SerializeToString().replace(b"\x0a", bytes([number << 3 | 2]), 1)


REQUESTS = (
    inference_pb2.CompleteRequest,
    inference_pb2.StreamCompleteRequest,
    inference_pb2.EmbedRequest,
    inference_pb2.CountTokensRequest,
    account_pb2.GetWalletRequest,
    account_pb2.ListChargesRequest,
    account_pb2.ListTransfersRequest,
    catalog_pb2.ListModelsRequest,
    catalog_pb2.GetModelRequest,
)


def places(descriptor: Descriptor, *above: FieldDescriptor) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Where messages of a request are, at every depth: the fields that lead to each."""
    yield above
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from places(field.message_type, *above, field)


PLACES = [(request_class, place) for request_class in REQUESTS for place in places(request_class.DESCRIPTOR)]


@pytest.mark.parametrize(
    ("request_class", "place"),
    PLACES,
    ids=[".".join((kind.DESCRIPTOR.name, *(field.name for field in place))) for kind, place in PLACES],
)
def test_a_field_this_version_does_not_know_is_refused_wherever_it_is(
    request_class: type[ProtoMessage], place: tuple[FieldDescriptor, ...]
) -> None:
    request = request_class()
    here, path = request, ""
    for field in place:
        below = getattr(here, field.name)
        here = below.add() if field.is_repeated else below
        path += f".{field.name}[0]" if field.is_repeated else f".{field.name}"
    here.MergeFromString(unknown_field(15))
    with pytest.raises(RequestInvalid) as caught:
        decode(request.SerializeToString(), request_class)
    [violation] = caught.value.violations
    assert violation.field == (path.removeprefix(".") or "request")
    assert violation.description == "has the unknown field 15"


def test_every_message_of_a_request_was_looked_at() -> None:
    types = [place[-1].message_type for _, place in PLACES if place]
    names = {kind.name for kind in types if kind is not None}
    assert {"Inference", "Message", "ContentPart", "ToolCall", "Tool", "Sampling", "ToolChoice"} <= names
    assert {"ResponseFormat", "TextFormat", "JsonObjectFormat", "JsonSchemaFormat"} <= names


def test_an_unknown_field_of_the_request_itself_is_refused() -> None:
    data = inference_pb2.CompleteRequest(inference=an_inference()).SerializeToString() + unknown_field(9)
    with pytest.raises(RequestInvalid, match="request: has the unknown field 9"):
        decode(data, inference_pb2.CompleteRequest)


def test_an_unknown_field_of_a_large_request_is_refused_without_a_search() -> None:
    data = inference_pb2.CompleteRequest(inference=an_inference()).SerializeToString() + unknown_field(9) * 10_000
    with pytest.raises(RequestInvalid, match="request: has a field that this version does not know"):
        decode(data, inference_pb2.CompleteRequest)


WHOLE = inference_pb2.CompleteRequest(inference=an_inference()).SerializeToString()


@given(st.binary(max_size=200))
@example(b"\x0a\x02\x0a\xff")
@example(WHOLE)
def test_random_bytes_are_refused_as_invalid_and_nothing_else(data: bytes) -> None:
    read_or_refuse(data)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4))
def test_a_damaged_request_is_read_or_refused_as_invalid(position: int, patch: bytes) -> None:
    read_or_refuse(WHOLE[:position] + patch + WHOLE[position + len(patch) :])


def read_or_refuse(data: bytes) -> None:
    try:
        request = decode(data, inference_pb2.CompleteRequest)
        assert isinstance(request, inference_pb2.CompleteRequest)
        read_inference(request)
    except RequestInvalid as error:
        assert error.violations  # noqa: PT017 - nothing else may be raised


# --- tools ----------------------------------------------------------------------------------------------------------


def with_tool_choice(**choice: object) -> InferenceRequest:
    inference = an_inference()
    set_tool_choice("f", "g", **choice)(inference)
    return read(inference)


def test_a_choice_of_tools_arrives() -> None:
    assert with_tool_choice(mode=chat_pb2.TOOL_CHOICE_MODE_AUTO).tool_choice == ToolChoice()
    required = with_tool_choice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)
    assert required.tool_choice == ToolChoice(kind=ToolChoiceKind.REQUIRED)
    named = with_tool_choice(function="g")
    assert named.tool_choice == ToolChoice(kind=ToolChoiceKind.FUNCTION, function="g")
    assert len(named.prompt.tools) == 2


def test_tools_that_must_not_be_called_are_neither_sent_nor_counted() -> None:
    assert with_tool_choice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE) == read(an_inference())


# --- embeddings -----------------------------------------------------------------------------------------------------


def test_an_embedding_request_arrives_in_the_domains_words() -> None:
    asked = inference_pb2.EmbedRequest(
        request_id="e-1", model="models/small", inputs=["a", "天"], dimensions=3, credit_limit_microcredits=5
    )
    assert read_embedding(asked) == EmbeddingRequest(
        request_id="e-1", model_id="small", inputs=("a", "天"), dimensions=3, credit_limit_microcredits=5
    )
    plain = read_embedding(inference_pb2.EmbedRequest(request_id="e-1", model="models/small", inputs=["a"]))
    assert (plain.dimensions, plain.credit_limit_microcredits) == (None, None)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("request_id", {"request_id": ""}),
        ("model", {"model": "small"}),
        ("inputs", {"inputs": []}),
        ("inputs", {"inputs": ["a"] * 2_049}),
        ("inputs[1]", {"inputs": ["a", ""]}),
        ("inputs[1]", {"inputs": ["a", "b\0c"]}),
        ("dimensions", {"dimensions": 0}),
        ("dimensions", {"dimensions": -1}),
        ("credit_limit_microcredits", {"credit_limit_microcredits": 0}),
        ("credit_limit_microcredits", {"credit_limit_microcredits": 2**62 + 1}),
    ],
)
def test_each_bad_field_of_an_embedding_is_refused_by_its_path(field: str, values: dict[str, object]) -> None:
    good: dict[str, object] = {"request_id": "e-1", "model": "models/small", "inputs": ["a"]}
    with pytest.raises(RequestInvalid) as caught:
        read_embedding(inference_pb2.EmbedRequest(**(good | values)))  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]

"""What a backend may say in pieces of tool calls, whatever its protocol."""

import json
from collections.abc import Callable

import pytest

from metergate.backends.answer_checks import AnswerChecks
from metergate.backends.grpc import AnswerReader as GrpcAnswerReader
from metergate.backends.openai_answer import AnswerReader as OpenAIAnswerReader
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import Delta, ToolCallDelta
from metergate.v1 import backend_pb2, chat_pb2

# One message with these pieces -> the deltas that are read of it. The reader lives for one answer.
Read = Callable[[list[ToolCallDelta]], list[Delta]]


def grpc_reader() -> Read:
    reader = GrpcAnswerReader(backend_id="b1", model_id="smol")

    def read(pieces: list[ToolCallDelta]) -> list[Delta]:
        calls = [
            chat_pb2.ToolCallDelta(index=p.index, tool_call_id=p.tool_call_id, name=p.name, arguments=p.arguments)
            for p in pieces
        ]
        message = backend_pb2.GenerateResponse(delta=chat_pb2.Delta(tool_calls=calls))
        return [event for event in reader.read(message) if isinstance(event, Delta)]

    return read


def openai_reader() -> Read:
    reader = OpenAIAnswerReader(backend_id="b1", model_id="smol")

    def read(pieces: list[ToolCallDelta]) -> list[Delta]:
        calls = [
            {"index": p.index, "id": p.tool_call_id, "function": {"name": p.name, "arguments": p.arguments}}
            for p in pieces
        ]
        data = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})
        return [event for event in reader.feed(f"data: {data}\n\n".encode()) if isinstance(event, Delta)]

    return read


@pytest.fixture(params=[grpc_reader, openai_reader], ids=["grpc", "openai"])
def read(request: pytest.FixtureRequest) -> Read:
    made: Read = request.param()
    return made


def piece(index: int = 0, tool_call_id: str = "", name: str = "", arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index=index, tool_call_id=tool_call_id, name=name, arguments=arguments)


def test_the_largest_tool_call_that_is_allowed_is_read(read: Read) -> None:
    largest = piece(127, "i" * 128, "n" * 256, "{}")
    assert read([largest]) == [Delta(tool_calls=(largest,))]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (piece(-1, "c", "f"), "it sent a piece of a tool call with an index outside 0 to 127"),
        (piece(128, "c", "f"), "it sent a piece of a tool call with an index outside 0 to 127"),
        (piece(2**31 - 1), "it sent a piece of a tool call with an index outside 0 to 127"),
        (piece(0, "i" * 129), "it sent a tool call whose id has more than 128 characters"),
        (piece(0, "c", "n" * 257), "it sent a tool call whose name has more than 256 characters"),
    ],
)
def test_a_tool_call_beyond_its_bounds_is_nonsense(read: Read, bad: ToolCallDelta, problem: str) -> None:
    with pytest.raises(BackendUnavailable) as failed:
        read([bad])
    assert failed.value.problem == problem


def test_an_id_and_a_name_that_are_repeated_with_later_pieces_are_read_once(read: Read) -> None:
    assert read([piece(1, "c", "f", "{")]) == [Delta(tool_calls=(piece(1, "c", "f", "{"),))]
    assert read([piece(1, "c", "f", "}")]) == [Delta(tool_calls=(piece(1, arguments="}"),))]


def test_a_piece_that_says_nothing_new_is_no_delivery(read: Read) -> None:
    read([piece(0, "c", "f")])
    assert read([piece(0, "c", "f"), piece(0)]) == []
    assert read([piece(0, "c"), piece(0, arguments="{}")]) == [Delta(tool_calls=(piece(0, arguments="{}"),))]


def test_an_id_may_come_after_the_name_and_each_index_has_its_own(read: Read) -> None:
    assert read([piece(0, name="f"), piece(1, name="f"), piece(0, "c"), piece(1, "d")]) == [
        Delta(tool_calls=(piece(0, name="f"), piece(1, name="f"), piece(0, "c"), piece(1, "d")))
    ]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (piece(0, "other"), "it sent a second id for a tool call"),
        (piece(0, name="other"), "it sent a second name for a tool call"),
    ],
)
def test_a_second_id_or_name_of_one_call_is_nonsense(read: Read, second: ToolCallDelta, problem: str) -> None:
    read([piece(0, "c", "f")])
    with pytest.raises(BackendUnavailable) as failed:
        read([second])
    assert failed.value.problem == problem


def test_a_whole_answer_has_at_most_128_tool_calls() -> None:
    calls = [{"id": f"c{index}", "function": {"name": "f", "arguments": "{}"}} for index in range(129)]
    body = json.dumps({"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]})
    with pytest.raises(BackendUnavailable, match="an index outside 0 to 127"):
        list(OpenAIAnswerReader(backend_id="b1", model_id="smol").read_whole(body.encode()))


def test_nothing_follows_the_finish_and_no_answer_ends_without_it() -> None:
    checks = AnswerChecks(backend_id="b1", model_id="smol")
    with pytest.raises(BackendUnavailable, match="its answer broke off before a finish reason"):
        checks.end()
    assert checks.finish()
    assert not checks.finish()
    checks.end()
    with pytest.raises(BackendUnavailable, match="its answer went on after the finish reason"):
        checks.before_delta()

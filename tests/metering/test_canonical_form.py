"""The canonical form of requests is kept in the hashes of charges: no version may change it (L4).

If a golden test here fails, the form has changed: every retry of a request that an earlier version charged would be
refused with REQUEST_ID_CONFLICT. Mend the code, never the golden values; for a new field, add a request that uses it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest

from metergate.core.embedding import EmbeddingRequest
from metergate.core.inference import InferenceRequest, Message, Prompt, Sampling
from metergate.edges.requests import read_embedding, read_inference
from metergate.metering.canonical import canonical_form, content_hash
from metergate.v1 import chat_pb2, inference_pb2

KEY = b"k" * 32

USER = chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="Why is the sky blue?")])
TOOL = chat_pb2.Tool(name="look_up", description="Looks up a word.", parameters_json_schema='{"type": "object"}')

SMALL = inference_pb2.Inference(request_id="q-1", model="models/small", messages=[USER])

CONVERSATION = inference_pb2.Inference(
    request_id="q-2",
    model="models/small",
    messages=[
        chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, content_parts=[chat_pb2.ContentPart(text="Be brief.")]),
        chat_pb2.Message(
            role=chat_pb2.ROLE_USER,
            content_parts=[chat_pb2.ContentPart(text="天空为什么"), chat_pb2.ContentPart(text='是"蓝"色的？\n')],
        ),
        chat_pb2.Message(
            role=chat_pb2.ROLE_ASSISTANT,
            tool_calls=[chat_pb2.ToolCall(tool_call_id="t1", name="look_up", arguments='{"word": "sky"}')],
        ),
        chat_pb2.Message(
            role=chat_pb2.ROLE_TOOL, tool_call_id="t1", content_parts=[chat_pb2.ContentPart(text="the upper air")]
        ),
    ],
    tools=[TOOL, chat_pb2.Tool(name="stop")],
    tool_choice=chat_pb2.ToolChoice(function="look_up"),
)

SETTINGS = inference_pb2.Inference(
    request_id="q-3",
    model="models/small",
    messages=[USER],
    sampling=chat_pb2.Sampling(
        temperature=0.7,
        top_p=1.0,
        top_k=40,
        min_p=1e-7,
        stop=["\n\n", "END"],
        seed=-(2**63),
        presence_penalty=0.0,
        frequency_penalty=-0.5,
    ),
    response_format=chat_pb2.ResponseFormat(
        json_schema=chat_pb2.ResponseFormat.JsonSchemaFormat(name="answer", schema='{"type": "object"}')
    ),
    max_completion_tokens=64,
    credit_limit_microcredits=2**62,
)

REQUIRED_TOOLS = inference_pb2.Inference(
    request_id="q-4",
    model="models/small",
    messages=[USER],
    tools=[TOOL],
    tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
    response_format=chat_pb2.ResponseFormat(json_object=chat_pb2.ResponseFormat.JsonObjectFormat()),
)

TEXTS = inference_pb2.EmbedRequest(request_id="e-1", model="models/vectors", inputs=["sky", "sea"])

SHORT_VECTORS = inference_pb2.EmbedRequest(
    request_id="e-2", model="models/vectors", inputs=["海"], dimensions=256, credit_limit_microcredits=1
)


def read(inference: inference_pb2.Inference) -> InferenceRequest:
    return read_inference(inference_pb2.CompleteRequest(inference=inference))


GOLDEN: list[tuple[InferenceRequest | EmbeddingRequest, str, str]] = [
    (
        read(SMALL),
        '{"model_id":"small","prompt":{"messages":[{"parts":["Why is the sky blue?"],"role":"USER"}]},"re'
        'quest_id":"q-1"}',
        "8edc34350dba795b68e4defbfbee2a1c8b00878cd4c82c399447c98063a82a91",
    ),
    (
        read(CONVERSATION),
        '{"model_id":"small","prompt":{"messages":[{"parts":["Be brief."],"role":"SYSTEM"},{"parts":["天空为'
        '什么","是\\"蓝\\"色的？\\n"],"role":"USER"},{"role":"ASSISTANT","tool_calls":[{"arguments":"{\\"word\\": \\"s'
        'ky\\"}","name":"look_up","tool_call_id":"t1"}]},{"parts":["the upper air"],"role":"TOOL","tool_ca'
        'll_id":"t1"}],"tools":[{"description":"Looks up a word.","name":"look_up","parameters_json_schem'
        'a":"{\\"type\\": \\"object\\"}"},{"name":"stop"}]},"request_id":"q-2","tool_choice":{"function":"loo'
        'k_up","kind":"FUNCTION"}}',
        "c2c1b35bb023cac32632d4c652e535206dc4497626ecf2fc9e52546b3679e997",
    ),
    (
        read(SETTINGS),
        '{"credit_limit_microcredits":4611686018427387904,"max_completion_tokens":64,"model_id":"small","'
        'prompt":{"messages":[{"parts":["Why is the sky blue?"],"role":"USER"}]},"request_id":"q-3","resp'
        'onse_format":{"json_schema":"{\\"type\\": \\"object\\"}","kind":"JSON_SCHEMA","schema_name":"answer"'
        '},"sampling":{"frequency_penalty":-0.5,"min_p":1e-7,"presence_penalty":0.0,"seed":-9223372036854'
        '775808,"stop":["\\n\\n","END"],"temperature":0.7,"top_k":40,"top_p":1.0}}',
        "dff542758c9466858cac0309874ca02d67da3ca406416060b2dd70969c059cf7",
    ),
    (
        read(REQUIRED_TOOLS),
        '{"model_id":"small","prompt":{"messages":[{"parts":["Why is the sky blue?"],"role":"USER"}],"too'
        'ls":[{"description":"Looks up a word.","name":"look_up","parameters_json_schema":"{\\"type\\": \\"o'
        'bject\\"}"}]},"request_id":"q-4","response_format":{"kind":"JSON_OBJECT"},"tool_choice":{"kind":"'
        'REQUIRED"}}',
        "148df0fb1136d7cc3610ddf131a13cde0bf6fe6192bbc05431a2b80a060120b0",
    ),
    (
        read_embedding(TEXTS),
        '{"inputs":["sky","sea"],"model_id":"vectors","request_id":"e-1"}',
        "d0aa2062886303772dbfe8cdd4e6ef0e4faf1882d0856929a9360da995f624e3",
    ),
    (
        read_embedding(SHORT_VECTORS),
        '{"credit_limit_microcredits":1,"dimensions":256,"inputs":["海"],"model_id":"vectors","request_id":"e-2"}',
        "7a196a61cdd900b36b0bb7b1e4fb7bd7d89e65e1409adb38eff83e80f95cb596",
    ),
]


@pytest.mark.parametrize(("asked", "form", "digest"), GOLDEN)
def test_the_form_and_the_hash_of_a_request_never_change(
    asked: InferenceRequest | EmbeddingRequest, form: str, digest: str
) -> None:
    assert canonical_form(asked).decode() == form
    assert content_hash(KEY, asked).hex() == digest


@dataclass(frozen=True, kw_only=True)
class LaterSampling(Sampling):
    min_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class LaterMessage(Message):
    name: str = ""
    is_cached: bool = False


@dataclass(frozen=True, kw_only=True)
class LaterPrompt(Prompt):
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LaterRequest(InferenceRequest):
    sampling: Sampling = LaterSampling()
    thinking: LaterSampling | None = None


@dataclass(frozen=True, kw_only=True)
class LaterEmbedding(EmbeddingRequest):
    instruction: str = ""


def later(kind: Callable[..., Any], value: Any, **changed: Any) -> Any:
    """The same, of a version that knows more fields."""
    return kind(**{known.name: getattr(value, known.name) for known in fields(value)} | changed)


@pytest.mark.parametrize("asked", [asked for asked, _, _ in GOLDEN])
def test_fields_of_a_later_version_change_no_form_of_a_request_that_does_not_use_them(
    asked: InferenceRequest | EmbeddingRequest,
) -> None:
    if isinstance(asked, EmbeddingRequest):
        same = later(LaterEmbedding, asked)
        other = replace(same, instruction="Find this:")
    else:
        messages = tuple(later(LaterMessage, message) for message in asked.prompt.messages)
        same = later(
            LaterRequest,
            asked,
            prompt=later(LaterPrompt, asked.prompt, messages=messages),
            sampling=later(LaterSampling, asked.sampling),
        )
        other = replace(same, thinking=LaterSampling())
    assert canonical_form(same) == canonical_form(asked)
    assert canonical_form(other) != canonical_form(asked)


def changes(value: Any) -> Iterator[Any]:
    """The same but for one field, each in turn."""
    if isinstance(value, str):
        yield value + "x"
    elif isinstance(value, tuple):
        yield (*value, *value) or ("x",)
        for index, item in enumerate(value):
            yield from ((*value[:index], other, *value[index + 1 :]) for other in changes(item))
    elif isinstance(value, int | float):
        yield value + 1
    elif value is None:
        yield 0
    else:
        for known in fields(value):
            yield from (replace(value, **{known.name: other}) for other in changes(getattr(value, known.name)))


@pytest.mark.parametrize("asked", [asked for asked, _, _ in GOLDEN])
def test_no_two_requests_share_a_form(asked: InferenceRequest | EmbeddingRequest) -> None:
    others = list(changes(asked))
    assert len(others) >= len(fields(asked))
    assert len({canonical_form(other) for other in (asked, *others)}) == 1 + len(others)

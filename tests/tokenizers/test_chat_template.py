"""A model's chat template is a program that came with it: it is rendered as its server does, within bounds."""

import json

import pytest

from metergate.core.errors import RequestInvalid, TokenizerInvalid
from metergate.core.inference import Message, Prompt, Role, Tool, ToolCall
from metergate.tokenizers.chat_template import ChatTemplate, TemplateSource

USER = Message(role=Role.USER, parts=("hi", " there"))
CALL = ToolCall(tool_call_id="call_1", name="weather", arguments='{"city": "北京"}')
CALLED = (USER, Message(role=Role.ASSISTANT, tool_calls=(CALL,)))
ANSWERED = (*CALLED, Message(role=Role.TOOL, parts=("sunny",), tool_call_id="call_1"))


def render(text: str, *messages: Message, tools: tuple[Tool, ...] = ()) -> str:
    template = ChatTemplate(TemplateSource(text=text, bos_token="<s>", eos_token="</s>"), "model.gguf")
    return template.render(Prompt(messages=messages or (USER,), tools=tools))


def test_messages_have_openais_shape_with_their_parts_joined() -> None:
    text = "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ m.tool_call_id }};{% endfor %}"
    assert render(text, *ANSWERED) == "user:hi there:;assistant::;tool:sunny:call_1;"


def test_the_template_writes_the_special_tokens_and_the_generation_prompt() -> None:
    text = "{{ bos_token }}{{ eos_token }}{% if add_generation_prompt %}assistant{% endif %}"
    assert render(text) == "<s></s>assistant"


def test_lines_of_blocks_leave_no_whitespace() -> None:
    assert render("  {% for m in messages %}\n{{ m.content }}\n  {% endfor %}\nend") == "hi there\nend"


def test_json_is_written_as_transformers_does() -> None:
    assert render("{{ {'b': '<北京>', 'a': 1} | tojson }}") == '{"b": "<北京>", "a": 1}'
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}") == json.dumps({"b": 1, "a": [2]}, indent=1)


def test_tools_are_given_with_their_schema_parsed() -> None:
    tool = Tool(name="weather", description="Weather.", parameters_json_schema='{"type": "object"}')
    expected = {
        "type": "function",
        "function": {"name": "weather", "description": "Weather.", "parameters": {"type": "object"}},
    }
    assert json.loads(render("{{ tools[0] | tojson }}", tools=(tool,))) == expected


def test_without_tools_the_template_sees_none() -> None:
    assert render("{{ 'none' if tools is none else 'some' }}") == "none"


def test_arguments_are_given_parsed_to_a_template_that_writes_json() -> None:
    text = "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    assert render(text, *CALLED) == '{"city": "北京"}'


def test_arguments_are_given_as_text_to_a_template_that_joins_texts() -> None:
    text = "{% for m in messages if m.tool_calls %}{{ 'call ' + m.tool_calls[0].function.arguments }}{% endfor %}"
    assert render(text, *CALLED) == 'call {"city": "北京"}'


def test_arguments_that_are_no_json_are_given_as_they_are() -> None:
    call = ToolCall(tool_call_id="c", name="n", arguments="{oops")
    text = "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments }}{% endfor %}"
    assert render(text, Message(role=Role.ASSISTANT, tool_calls=(call,))) == "{oops"


def test_a_templates_refusal_is_a_violation_of_the_messages() -> None:
    with pytest.raises(RequestInvalid) as refused:
        render("{{ raise_exception('roles must alternate') }}")
    assert [violation.field for violation in refused.value.violations] == ["messages"]
    assert "roles must alternate" in str(refused.value)


@pytest.mark.parametrize("text", ["{{ messages[9].content }}", "{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ none.x.y }}"])
def test_a_template_that_fails_on_the_messages_refuses_them(text: str) -> None:
    with pytest.raises(RequestInvalid):
        render(text)


def test_a_tool_schema_that_is_no_json_is_named() -> None:
    with pytest.raises(RequestInvalid) as refused:
        render("x", tools=(Tool(name="a"), Tool(name="b", parameters_json_schema="{")))
    assert [violation.field for violation in refused.value.violations] == ["tools[1].parameters_json_schema"]


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{% set t = 'x' * 60000 %}{% for i in range(99999) %}{{ t }}{% endfor %}",
    ],
)
def test_what_a_template_may_not_do_ends_it(text: str) -> None:
    with pytest.raises(RequestInvalid):
        render(text)


def test_a_template_that_does_not_compile_names_the_file() -> None:
    with pytest.raises(TokenizerInvalid, match=r"model\.gguf.*does not compile"):
        ChatTemplate(TemplateSource(text="{% for %}"), "model.gguf")

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


ESCAPES = {
    "a long text": "{{ 'a' * 1000000000 }}",
    "a long text, turned": "{{ 1000000000 * 'a' }}",
    "a long list": "{{ ([1] * 60000) * 60000 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a width by %": "{{ '%999999999d' % 1 }}",
    "a width by a filter": "{{ '%999999999d'|format(1) }}",
    "a width by an argument": "{{ '%*d'|format(999999999, 1) }}",
    "a width by a method": "{{ '{:999999999}'.format(1) }}",
    "a width by a width": "{{ '{:{}}'.format(1, 999999999) }}",
    "padding": "{{ 'a'.ljust(999999999) }}",
    "padding by a filter": "{{ 'a'|center(999999999) }}",
    "zeros": "{{ 'a'.zfill(999999999) }}",
    "tabs": "{{ '\t'.expandtabs(999999999) }}",
    "indenting": "{{ 'a\nb'|indent(999999999) }}",
    "indented JSON": "{{ [1]|tojson(indent=999999999) }}",
    "a long range": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a generator": "{% for i in range(9999) %}{% for j in range(9999)|map('abs') %}{% endfor %}{% endfor %}",
    "doubling with ~": "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "doubling with +": "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "doubling lists": "{% set n = namespace(t=[1]) %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "doubling in blocks": (
        "{% set n = namespace(t='ab') %}{% for i in range(99) %}"
        "{% set b %}{{ n.t }}{{ n.t }}{% endset %}{% set n.t = b %}{% endfor %}"
    ),
    "replacing": "{{ ('a' * 60000).replace('a', 'b' * 60000) }}",
    "replacing by a filter": "{{ ('a' * 60000)|replace('a', 'b' * 60000) }}",
    "joining": "{{ ('b' * 60000).join('a' * 60000) }}",
    "joining by a filter": "{{ ('a' * 60000)|join('b' * 60000) }}",
    "calls in calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "calls without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "searching": (
        "{% set t = 'x' * 60000 %}{% set t = t + t + t + t %}{% set t = t + t + t + t %}"
        "{% for i in range(99999) %}{% if (t + 'y') in t %}{% endif %}{% if 'y' in t %}{% endif %}{% endfor %}"
    ),
    "words without end": "{{ lipsum(n=1000000) }}",
    "another file": "{% include 'secrets' %}",
    "changing the messages": "{{ messages.append(1) }}",
    "classes of the messages": "{{ messages.__class__.__mro__ }}",
    "classes": "{{ ''.__class__.__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__.json }}",
    "globals by a filter": "{{ (raise_exception|attr('__globals__')).json }}",
    "globals by a format": "{{ '{0.__globals__[json]}'.format(raise_exception) }}",
    "a long prompt": "{% set t = 'x' * 60000 %}{% for i in range(99999) %}{{ t }}{% endfor %}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_template_may_not_do_ends_it(name: str) -> None:
    # At once, or when it is reached: only for a message that its loading does not try it with.
    with pytest.raises((TokenizerInvalid, RequestInvalid)):
        render(ESCAPES[name])
    with pytest.raises((TokenizerInvalid, RequestInvalid)):
        render("{% if messages[0].content == 'hi there' %}" + ESCAPES[name] + "{% endif %}")


def test_a_template_that_breaks_the_bounds_on_every_message_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(TokenizerInvalid, match=r"model\.gguf.*may not make so large a value"):
        ChatTemplate(TemplateSource(text=ESCAPES["doubling with ~"]), "model.gguf")


def test_each_rendering_has_bounds_of_its_own() -> None:
    template = ChatTemplate(TemplateSource(text="{% for i in range(60000) %}{% endfor %}{{ 'a' ~ 'b' }}"), "model.gguf")
    for _ in range(40):
        assert template.render(Prompt(messages=(USER,))) == "ab"


def test_loops_know_their_length_and_their_last_turn() -> None:
    text = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
    assert render(text, *ANSWERED) == "1/3,2/3,3/3."
    text = "{% for m in messages if m.role != 'tool' %}{{ loop.index }}{{ '.' if loop.last else ',' }}{% endfor %}"
    assert render(text, *ANSWERED) == "1,2."
    assert render("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% else %}none{% endfor %}") == "a1"


def test_a_long_conversation_is_well_within_the_bounds() -> None:
    messages = tuple(Message(role=Role.USER, parts=("word " * 200,)) for _ in range(2_000))
    text = (
        "{% for m in messages %}{% set c = '<|' + m.role + '|>' ~ m.content | trim %}"
        "{{ c.replace('|>', '|>\n').split('\n')[-1] }}{{ '\n' }}{% endfor %}"
    )
    assert len(render(text, *messages)) == 2_000_000


def test_a_template_that_does_not_compile_names_the_file() -> None:
    with pytest.raises(TokenizerInvalid, match=r"model\.gguf.*does not compile"):
        ChatTemplate(TemplateSource(text="{% for %}"), "model.gguf")

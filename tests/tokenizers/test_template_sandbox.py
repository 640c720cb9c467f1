"""A template that takes too much ends with a typed error, within bounds of memory; any other is unchanged."""

import json
import tracemalloc

import jinja2
import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from real_vocabularies import smollm2_path

from metergate.core.errors import RequestInvalid, TokenizerInvalid
from metergate.core.inference import Message, Prompt, Role, Tool, ToolCall
from metergate.tokenizers.chat_template import ChatTemplate, TemplateSource
from metergate.tokenizers.gguf import load_gguf
from metergate.tokenizers.template_budget import MADE_BYTES_MAX

USER = Prompt(messages=(Message(role=Role.USER, parts=("hi",)),))
# Lists grow by an eighth more than they hold.
PEAK_BYTES_MAX = MADE_BYTES_MAX + MADE_BYTES_MAX // 8

NESTED = "{% set a = [0] * 60000 %}{% set b = [a] * 1500 %}"
LONG = "{% set a = TEXT * 60000 %}{% set a = a+a+a+a+a+a+a+a %}{% set a = a+a+a+a+a+a+a+a %}"
SHARED = "{% set n = namespace(t=(1, 1)) %}{% for i in range(60) %}{% set n.t = (n.t, n.t) %}{% endfor %}"


def long(text: str) -> str:
    """A template's start with ``a`` of four million characters."""
    return LONG.replace("TEXT", json.dumps(text))


ATTACKS = {
    "formatting with a name": '{{ (("%(a)s" * 4000)|format(a="x" * 60000))|length }}',
    "formatting with arguments": '{{ (("%s" * 4000)|format(*(["x" * 60000] * 4000)))|length }}',
    "formatting with one argument, often": '{{ ("{0}" * 4000).format("x" * 60000)|length }}',
    "formatting lists": "{% set b = [[0] * 60000] * 60000 %}{{ '{0}'.format(b) }}",
    "padding, often": "{{ ('%999d' * 10000)|format(*([1] * 200)) }}",
    "formatting maps": "{{ '{a}'.format_map({'a': 1}) }}",
    "lists of lists as a text": NESTED + "{{ (b|string)|length }}",
    "lists of lists written": NESTED + "{{ b }}",
    "lists of lists concatenated": NESTED + "{{ (b ~ '')|length }}",
    "lists of lists joined": NESTED + "{{ (b|join)|length }}",
    "lists of lists as JSON": NESTED + "{{ (b|tojson)|length }}",
    "lists of lists in an error": NESTED + "{{ raise_exception(b) }}",
    "lists of lists as a key": NESTED + "{{ {}[b].x }}",
    "lists of lists compared": NESTED + "{% set c = b + [1] %}{{ b < c }}{{ [b] == [c] }}{{ b + [2] == c }}",
    "lists of lists searched": NESTED + "{{ [1] * 60000 in b }}{{ ([1] * 60000) is in(b) }}",
    "lists of lists sorted": NESTED + "{{ b|sort|length }}",
    "lists of lists, the least": NESTED + "{{ b|min|length }}",
    "sums of lists": "{% set a = [0] * 20000 %}{% set b = [a] * 1000 %}{{ (b|sum(start=[]))|length }}",
    "joining one text, often": '{% set a = "x" * 60000 %}{% set b = [a] * 2000 %}{{ (b|join)|length }}',
    "doubled tuples hashed": SHARED + "{{ {n.t: 1}|length }}",
    "doubled tuples looked up": SHARED + "{{ {}.get(n.t) }}",
    "doubled tuples compared": SHARED + "{% set m = n.t %}" + SHARED + "{{ m == n.t }}",
    "doubled tuples made unique": SHARED + "{{ [n.t]|unique|list|length }}",
    "doubled tuples written": SHARED + "{{ n.t }}",
    "nesting": "{% set n = namespace(t=[1]) %}{% for i in range(5000) %}{% set n.t = [n.t] %}{% endfor %}{{ n.t }}",
    "a namespace within itself": "{% set n = namespace() %}{% set n.t = [n] %}{{ n }}",
    "bytes padded": '{{ "x".encode().zfill(500000000)|length }}',
    "bytes replaced": '{{ ("x" * 60000).encode().replace("x".encode(), ("y" * 8000).encode())|length }}',
    "bytes times a number": '{{ ("x" * 60000).encode() * 8000 }}',
    "bytes padded by a filter": '{{ ("x".encode()|attr("ljust"))(500000000)|length }}',
    "bytes of a number": '{{ (1).to_bytes(500000000, "big")|length }}',
    "formatting by a test": "{{ '%99999999d' is odd }}",
    "formatting by another test": "{{ '%99999999d' is divisibleby(3) }}",
    "filters that take no step": (
        "{% set a = range(60000)|list %}"
        "{% for i in range(200) %}{% set x = a|sort|unique|list|reverse|list %}{% endfor %}ok"
    ),
    "sorting one long text": long("A") + "{{ ([a] * 60000)|sort|length }}",
    "other letters of one long text": long("A") + "{{ ([a] * 60000)|map('upper')|list|length }}",
    "words of a long text": long("a-") + "{{ a|title|length }}",
    "lines of a long text": long("\r") + "{{ a.splitlines()|length }}",
    "indenting a long text": long("\r") + "{{ a|indent(1)|length }}",
    "pieces of a long text": long("ab") + "{{ a.split('a')|length }}",
    "a list of a long text": long("a") + "{{ a|list|length }}",
    "one wide character": long("x")
    + "{% set a = a+a+a %}{{ (a ~ '\U0001f600')|length }}{{ (a + '\U0001f600')|length }}",
    "letters that grow": long("\u0390") + "{{ a|upper|length }}",
    "signs that grow as JSON": long("\x01") + "{% set a = a+a+a %}{{ a|tojson|length }}",
    "signs that grow when represented": long("\x01") + "{% set a = a+a+a+a+a %}{{ [a]|string|length }}",
    "signs that grow when escaped": long('"') + "{% set a = a+a+a+a %}{{ ((''|safe) + a)|length }}",
    "separators of JSON": "{{ ([1] * 60000)|tojson(separators=('a' * 60000, ':'))|length }}",
    "replacing nothing": "{% set a = 'x' * 60000 %}{{ a.replace('', a)|length }}",
    "stripping of many": long("x") + "{{ a.strip('yz' * 30000 + 'x') }}",
    "stripping of many by a filter": long("x") + "{{ a|trim('yz' * 30000 + 'x') }}",
    "searching from the end": long("x") + "{{ a.rsplit('y' + a[:100000], 1)|length }}",
    "dividing": "{{ 0x" + "f" * 100_000 + " // 0x" + "e" * 50_000 + " }}",
    "dividing what was read": "{{ ('f' * 60000)|int(0, 16) // 3 }}",
    "many arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}{{ f(*range(99999)) }}",
    "recursive loops": "{% for i in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "escaping": "{% autoescape true %}{{ '<' * 60000 }}{% endautoescape %}",
    "loops that only write": (
        "{% macro f() %}{% for i in range(99999) %}"
        + "a{% if i %}b{% endif %}" * 1_000
        + "{% endfor %}{% endmacro %}{{ f()|length }}"
    ),
    "loops that keep lists": (
        "{% set n = namespace(t=[]) %}{% for i in range(99999) %}{% set n.t = [n.t, ["
        + "[]," * 500
        + "]] %}{% endfor %}"
    ),
    "loops that keep slices": (
        "{% set n = namespace(t=[]) %}{% set a = 'x' * 60000 %}"
        "{% for i in range(99999) %}{% set n.t = [n.t, a[1:]] %}{% endfor %}"
    ),
    "loops that keep dictionaries": (
        "{% set n = namespace(t=[]) %}{% for i in range(99999) %}"
        "{% set n.t = [n.t, dict(a=1), {'a': 1}, namespace(a=1)] %}{% endfor %}"
    ),
    "a long form of the time": "{{ strftime_now('%c' * 30000) }}",
    "deep expressions": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "a long template": "x" * 300_000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_takes_too_much_ends_with_a_typed_error_within_the_bounds_of_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((TokenizerInvalid, RequestInvalid)) as refused:
            ChatTemplate(TemplateSource(text=ATTACKS[name]), "model.gguf").render(USER)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= PEAK_BYTES_MAX
    # An answer's status holds it, and it may repeat what the prompt says.
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "{{ [1].copy() }}",
        "{{ [1].index(1) }}",
        "{{ {}.copy() }}",
        "{{ (1).bit_length() }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.isidentifier() }}",
        "{{ messages.append(1) }}",
        "{{ [1]|groupby('a') }}",
        "{{ 1|round(-1000000000) }}",
        "{{ 'a' is upper }}",
        "{{ joiner() }}",
        "{{ namespace }}",
        "{{ range(9).count(1) }}",
        "{{ ('a'|safe).unescape() }}",
        "{{ [1][0]() }}",
        "{% block a %}{% endblock %}",
        "{% import 'a' as b %}",
    ],
)
def test_what_no_chat_template_uses_is_not_there(text: str) -> None:
    with pytest.raises((TokenizerInvalid, RequestInvalid)):
        ChatTemplate(TemplateSource(text=text), "model.gguf").render(USER)


# --- what real templates do -------------------------------------------------------------------------------------------

CALL = ToolCall(tool_call_id="call00001", name="weather", arguments='{"city": "北京", "days": [1, 2.5, null, true]}')
SCHEMA = (
    '{"type": "object", "properties": {"city": {"type": "string", "enum": ["北京", "it\'s"]}}, "required": ["city"]}'
)
CHAT = Prompt(
    messages=(
        Message(role=Role.SYSTEM, parts=("You are 'good'.",)),
        Message(role=Role.USER, parts=(" hi <b>\n",)),
        Message(role=Role.ASSISTANT, tool_calls=(CALL,)),
        Message(role=Role.TOOL, parts=('{"sunny": true}',), tool_call_id="call00001"),
        Message(role=Role.ASSISTANT, parts=("<think>\nhm\n</think>\n\nyes",)),
        Message(role=Role.USER, parts=("more 中文 \U0001f600",)),
    ),
    tools=(Tool(name="weather", description='The "weather"', parameters_json_schema=SCHEMA),),
)
EACH = "{% for m in messages %}"
IDIOMS = {
    "roles and marks": EACH
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}",
    "roles in other letters": EACH + "{{ m.role|title }}{{ m.role.upper() }}{{ m.role|capitalize|lower }}{% endfor %}",
    "thoughts left out": EACH
    + "{{ m.content.split('</think>')[-1].lstrip('\n') if '</think>' in m.content }}{% endfor %}",
    "thoughts apart": EACH + "{{ m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1] }}{% endfor %}",
    "trimmed": EACH + "{{ m.content|trim }}{{ m.content.strip() }}{{ m['content'] | replace('h', 'H') }}{% endfor %}",
    "parts of texts": EACH + "{{ m.content[:3] }}{{ m.content[1:-1] }}{{ m.content.startswith('hi') }}{% endfor %}",
    "the last question": (
        "{% set ns = namespace(tools=true, last=messages|length - 1) %}{% for m in messages[::-1] %}"
        "{% set index = (messages|length - 1) - loop.index0 %}"
        "{% if ns.tools and m.role == 'user' and m.content is string %}"
        "{% set ns.tools = false %}{% set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}"
    ),
    "neighbours": EACH
    + "{{ loop.previtem.role if loop.previtem }}-{{ loop.nextitem is defined }}{{ loop.last }}{% endfor %}",
    "system first": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}{{ system }}{{ messages|length }}"
    ),
    "alternation": EACH + "{{ (m['role'] == 'user') != (loop.index0 % 2 == 0) }}{{ loop.index0 is even }}{% endfor %}",
    "tools as JSON": (
        "{% for t in tools %}{{ t | tojson }}{{ t.function|tojson(indent=4) }}{% endfor %}{{ tools|tojson }}"
    ),
    "tools as Python": "{{ tools }}{% for t in tools %}{{ t }}{{ t|string ~ t.function.parameters }}{% endfor %}",
    "sorted JSON": "{{ tools[0].function|tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    "arguments one by one": (
        EACH + "{% if m.tool_calls is defined and m.tool_calls %}{% for call in m.tool_calls %}"
        "{% for name, value in call.function.arguments|items %}<{{ name }}>"
        "{% set value = value|tojson|safe if value is mapping or (value is sequence and value is not string) "
        "else value|string %}{{ value }}</{{ name }}>{% endfor %}{% endfor %}{% endif %}{% endfor %}"
    ),
    "arguments with dots": (
        EACH + "{% for call in m.tool_calls or [] %}{% for k, v in call.function.arguments.items() %}"
        "{{ k }}={{ v if v is number or v is none else v|tojson }}{{ ', ' if not loop.last }}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "properties": (
        "{% for name, p in tools[0].function.parameters.properties|dictsort %}{{ name }}: {{ p.type|default('any') }}"
        "{{ p.get('enum', [])|join(' | ') }}{{ p['enum']|map('tojson')|join(',') }}"
        "{{ name in tools[0].function.parameters.required }}{% endfor %}"
    ),
    "names chosen": (
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|length }}"
        "{{ messages|rejectattr('role', 'in', ['user', 'system'])|map(attribute='role')|unique|join(',') }}"
        "{{ (messages|selectattr('role', 'eq', 'user')|first).content }}{{ [3, 1, 2]|sort|last }}{{ [2, 3]|min }}"
    ),
    "no tools chosen": "{% if messages|selectattr('role', 'eq', 'none') %}some{% endif %}{{ none|map('upper')|list }}",
    "macros": (
        "{% macro kind(spec, depth=0) %}{% if spec.type == 'object' %}{% for k, v in spec.properties.items() %}"
        "{{ '  ' * depth }}{{ k }}: {{ kind(v, depth + 1) }};{% endfor %}{% else %}{{ spec.type }}"
        "{% endif %}{% endmacro %}"
        "{{ kind(tools[0].function.parameters) }}"
        "{% macro around(x) %}<{{ caller() }}{{ x }}>{% endmacro %}{% call around(1) %}a{% endcall %}"
    ),
    "blocks": "{% set x %}{{ messages[0].content }}{% endset %}{{ x|length }}{% filter trim %}  a {% endfilter %}",
    "lists that grow": (
        "{% set ns = namespace(seen=[]) %}"
        + EACH
        + "{% if m.role not in ns.seen %}{% set ns.seen = ns.seen + [m.role] %}"
        "{% endif %}{% endfor %}{{ ns.seen|join('-') }}{{ ns.seen }}"
    ),
    "loops left early": EACH
    + "{% if m.role == 'tool' %}{% break %}{% elif loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "what is undefined": (
        "{{ foo }}{{ foo is defined }}{{ messages[0].foo is undefined }}{{ foo|default('x', true) }}"
        "{{ messages[0].foo }}"
    ),
    "numbers": (
        "{{ 7 // 2 }}{{ 7 % 4 }}{{ -1 }}{{ '5'|int + 1 }}{{ 1.5|float }}{{ [1, 2] == [1, 2] }}"
        "{{ 1 < 2 <= 2 }}{{ 7 / 2 }}"
    ),
    "formats": "{{ '<{}-{b}>'.format('a', b=1) }}{{ '%s-%d'|format('x', 3) }}{{ 'a\nb'|indent(2, first=true) }}",
    "what is safe": "{{ '<a>'|safe + 'b' }}{{ ('<' ~ (tools|tojson|safe)) }}{{ ['<']|join('\"'|safe) }}",
    "dictionaries": (
        "{{ dict(a=1, **{'b': 2}) }}{{ {'a': {'b': (1, 2)}} }}{{ {'a': 1}.keys()|list }}{{ 'a' in {'a': 1} }}"
    ),
}


def reference(text: str) -> jinja2.Template:
    """The template in plain Jinja, with transformers' configuration."""
    extensions = [jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **named: json.dumps(
        value, ensure_ascii=ensure_ascii, **named
    )
    return environment.from_string(text)


def rendered_by_reference(source: TemplateSource) -> str:
    call = {"name": CALL.name, "arguments": json.loads(CALL.arguments)}
    messages = []
    for message in CHAT.messages:
        shaped: dict[str, object] = {"role": message.role.value.lower(), "content": message.text()}
        if message.tool_calls:
            shaped["tool_calls"] = [{"id": CALL.tool_call_id, "type": "function", "function": call}]
        if message.tool_call_id:
            shaped["tool_call_id"] = message.tool_call_id
        messages.append(shaped)
    function = {"name": "weather", "description": 'The "weather"', "parameters": json.loads(SCHEMA)}
    return reference(source.text).render(
        messages=messages,
        tools=[{"type": "function", "function": function}],
        add_generation_prompt=True,
        bos_token=source.bos_token,
        eos_token=source.eos_token,
    )


@pytest.mark.parametrize("name", IDIOMS)
def test_what_real_templates_do_is_rendered_as_plain_jinja_renders_it(name: str) -> None:
    source = TemplateSource(text=IDIOMS[name])
    assert ChatTemplate(source, "model.gguf").render(CHAT) == rendered_by_reference(source)


def test_a_real_models_template_is_rendered_as_plain_jinja_renders_it() -> None:
    source = load_gguf(smollm2_path()).template
    assert source is not None
    assert ChatTemplate(source, "smollm2").render(CHAT) == rendered_by_reference(source)


def test_the_largest_requests_are_within_the_bounds() -> None:
    text = IDIOMS["roles and marks"] + IDIOMS["the last question"]
    template = ChatTemplate(TemplateSource(text=text), "model.gguf")
    for prompt in (
        Prompt(messages=(Message(role=Role.USER, parts=("word " * 800_000,)),)),
        Prompt(messages=(Message(role=Role.USER, parts=("中文字\n" * 400_000,)),)),
        Prompt(messages=tuple(Message(role=Role.USER, parts=("word " * 800,)) for _ in range(1_024))),
    ):
        assert len(template.render(prompt)) > sum(len(message.text()) for message in prompt.messages)

"""Renders a model's own chat template (Jinja) as its server does, so that the prompt it sees can be counted.

A template is a program that came with a model: it runs in a sandbox with bounds (template_sandbox.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from metergate.core.errors import RequestInvalid, TokenizerInvalid, Violation
from metergate.core.inference import Message, Prompt, Role, Tool, ToolCall
from metergate.tokenizers.template_budget import budget
from metergate.tokenizers.template_sandbox import SandboxedTemplates
from metergate.tokenizers.template_values import PLACE_BYTES, text_bytes

# Templates explain themselves in a sentence, or repeat a whole message.
_PROBLEM_CHARACTERS_MAX = 300
# What a template's code can raise when it meets messages it was not written for.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSource:
    """A chat template and the tokens it may write."""

    text: str
    bos_token: str = ""
    eos_token: str = ""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: TemplateSource, path: str) -> None:
        """TokenizerInvalid naming ``path`` if the template does not compile, or breaks the sandbox's bounds."""
        self._tokens = {"bos_token": source.bos_token, "eos_token": source.eos_token}
        try:
            self._template = SandboxedTemplates().compiled(source.text)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise TokenizerInvalid(
                path=path, problem=f"its chat template does not compile: {_problem(error)}"
            ) from error
        try:
            self._arguments_are_objects = self._takes_objects()
        except SecurityError as error:
            raise TokenizerInvalid(path=path, problem=f"its chat template does what none may: {error}") from error

    def render(self, prompt: Prompt) -> str:
        """The text the model is given; RequestInvalid if the template refuses the messages."""
        try:
            return self._render(
                messages=[_message(message, self._arguments_are_objects) for message in prompt.messages],
                tools=[_tool(index, tool) for index, tool in enumerate(prompt.tools)] or None,
            )
        except _TEMPLATE_FAILURES as error:
            description = f"the model's chat template refuses them: {_problem(error)}"
            raise RequestInvalid(Violation("messages", description)) from error

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        pieces: list[str] = []
        with budget() as mine:
            for piece in self._template.generate(
                messages=messages, tools=tools, add_generation_prompt=True, **self._tokens
            ):
                mine.make(PLACE_BYTES + text_bytes(piece))
                pieces.append(piece)
        return "".join(pieces)

    def _takes_objects(self) -> bool:
        """Whether the arguments of tool calls are to be given parsed; some templates want the JSON text."""
        call = ToolCall(tool_call_id="call00000", name="name", arguments='{"key": "value"}')
        probe = (
            Message(role=Role.USER, parts=("text",)),
            Message(role=Role.ASSISTANT, tool_calls=(call,)),
            Message(role=Role.TOOL, parts=("text",), tool_call_id=call.tool_call_id),
        )
        try:
            self._render(messages=[_message(message, True) for message in probe], tools=None)
        except TypeError:
            return False
        except SecurityError:
            raise
        except _TEMPLATE_FAILURES:
            return True
        return True


def _problem(error: Exception) -> str:
    return str(error)[:_PROBLEM_CHARACTERS_MAX]


def _message(message: Message, arguments_are_objects: bool) -> dict[str, Any]:
    """A message in the shape templates expect: OpenAI's, its parts joined to one text."""
    shaped: dict[str, Any] = {"role": message.role.value.lower(), "content": message.text()}
    if message.tool_calls:
        shaped["tool_calls"] = [_tool_call(call, arguments_are_objects) for call in message.tool_calls]
    if message.tool_call_id:
        shaped["tool_call_id"] = message.tool_call_id
    return shaped


def _tool_call(call: ToolCall, arguments_are_objects: bool) -> dict[str, Any]:
    arguments: Any = call.arguments
    if arguments_are_objects:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
    return {"id": call.tool_call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(index: int, tool: Tool) -> dict[str, Any]:
    try:
        parameters = json.loads(tool.parameters_json_schema or "{}")
    except ValueError as error:
        field = f"tools[{index}].parameters_json_schema"
        raise RequestInvalid(Violation(field, f"it is no JSON: {error}")) from error
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def read_template(path: Path) -> TemplateSource:
    """The template of a ``tokenizer_config.json``, or of a Jinja file; TokenizerInvalid if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return TemplateSource(text=text)
        return _template_of_config(json.loads(text))
    except OSError as error:
        raise TokenizerInvalid(path=str(path), problem=error.strerror or str(error)) from error
    except KeyError as error:
        raise TokenizerInvalid(path=str(path), problem=f"it has no {error.args[0]}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TokenizerInvalid(path=str(path), problem=f"it has no chat template: {error}") from error


def _template_of_config(config: dict[str, Any]) -> TemplateSource:
    template = config["chat_template"]
    if isinstance(template, list):
        template = next((item["template"] for item in template if item["name"] == "default"), None)
    if not isinstance(template, str):
        raise ValueError("chat_template is neither a text nor a list with one named 'default'")
    return TemplateSource(
        text=template, bos_token=_token(config.get("bos_token")), eos_token=_token(config.get("eos_token"))
    )


def _token(value: str | dict[str, Any] | None) -> str:
    """A special token's text: written as such, as an object with its content, or not at all."""
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value["content"])

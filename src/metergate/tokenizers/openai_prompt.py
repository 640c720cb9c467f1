"""OpenAI's published rule for counting chat prompts, for models whose template is not public.

Each message costs 3 tokens besides its role and text, and 3 more prime the answer (OpenAI cookbook, "How to count
tokens with tiktoken"). Of tools and tool calls nothing exact is published: their text is counted, so that none is free.
"""

import json
from collections.abc import Callable

from metergate.core.inference import Message, Prompt

_TOKENS_A_MESSAGE = 3
_TOKENS_OF_PRIMING = 3


def count_openai_prompt(count_text: Callable[[str], int], prompt: Prompt) -> int:
    """Tokens of the prompt by the published rule."""
    tools = [[tool.name, tool.description, tool.parameters_json_schema] for tool in prompt.tools]
    tokens_of_tools = count_text(json.dumps(tools, ensure_ascii=False)) if tools else 0
    return (
        sum(_count_message(count_text, message) for message in prompt.messages) + tokens_of_tools + _TOKENS_OF_PRIMING
    )


def _count_message(count_text: Callable[[str], int], message: Message) -> int:
    texts = [message.role.value.lower(), message.text(), message.tool_call_id]
    for call in message.tool_calls:
        texts += [call.tool_call_id, call.name, call.arguments]
    return _TOKENS_A_MESSAGE + sum(count_text(text) for text in texts)

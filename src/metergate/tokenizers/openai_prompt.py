"""OpenAI's published rule for counting chat prompts, for models whose template is not public.

Each message costs 3 tokens besides its role and text, and 3 more prime the answer (OpenAI cookbook, "How to count
tokens with tiktoken"). Of tools and tool calls nothing exact is published: their text is counted, so that none is free.
"""

import json
from collections.abc import Callable

from metergate.core.inference import Message, Prompt, Role

_TOKENS_A_MESSAGE = 3
_TOKENS_OF_PRIMING = 3


class OpenAIPromptRule:
    """The published rule, with a vocabulary: ``count_text`` counts a text in it."""

    def __init__(self, count_text: Callable[[str], int]) -> None:
        self._count_text = count_text
        self._role_tokens = {role: count_text(role.value.lower()) for role in Role}

    def count(self, prompt: Prompt) -> int:
        """Tokens of the prompt."""
        tools = [[tool.name, tool.description, tool.parameters_json_schema] for tool in prompt.tools]
        tokens_of_tools = self._count_text(json.dumps(tools, ensure_ascii=False)) if tools else 0
        return sum(map(self._count_message, prompt.messages)) + tokens_of_tools + _TOKENS_OF_PRIMING

    def _count_message(self, message: Message) -> int:
        texts = [message.text(), message.tool_call_id]
        for call in message.tool_calls:
            texts += [call.tool_call_id, call.name, call.arguments]
        tokens_of_texts = sum(self._count_text(text) for text in texts if text)
        return _TOKENS_A_MESSAGE + self._role_tokens[message.role] + tokens_of_texts

"""How many tokens a text can be, where the model's vocabulary is unknown and its backend's count is charged.

A token of byte pairs stands for at least one byte, so a text has at most as many tokens as it has bytes of UTF-8. That
is set aside before a text is delivered; the estimate is what is charged if no report comes.
"""

from dataclasses import dataclass
from typing import Self

from metergate.core.inference import Prompt

# English has four to five characters a token and other languages of the Latin script three to four; Chinese has one to
# two. The estimate is on the subscriber's side for prose, and below the truth for code and digits.
_ASCII_CHARACTERS_PER_TOKEN = 4

# Escaped for JSON a character is at most six bytes, more than any is in UTF-8 three times over; tools are the only part
# of a prompt that templates escape.
_ESCAPED_BYTES_PER_CHARACTER = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBound:
    """What a model's template may add to a prompt's own text, in tokens."""

    request_tokens_max: int  # once: a beginning, a system prompt of the template's own, how to answer, how to use tools
    message_tokens_max: int  # around each message and each tool


@dataclass(frozen=True, slots=True)
class TextSize:
    """What is known of a text's tokens without a vocabulary. Sizes of a text's parts add up to the whole's."""

    bytes: int = 0  # of UTF-8: the most tokens it can be
    ascii_characters: int = 0
    other_characters: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        """A text's size."""
        size = len(text.encode())
        if size == len(text):
            return cls(size, size, 0)
        others = len(text) - len(text.encode("ascii", "ignore"))
        return cls(size, len(text) - others, others)

    def __add__(self, other: "TextSize") -> "TextSize":
        return TextSize(
            self.bytes + other.bytes,
            self.ascii_characters + other.ascii_characters,
            self.other_characters + other.other_characters,
        )

    def estimated_tokens(self) -> int:
        """A token for each four ASCII characters, rounded up, and for each other one: never more than the bytes."""
        return -(-self.ascii_characters // _ASCII_CHARACTERS_PER_TOKEN) + self.other_characters


def prompt_tokens_max(prompt: Prompt, bound: PromptBound) -> int:
    """The most tokens a prompt can be."""
    tools = sum(len(text) for text in _texts_of_tools(prompt)) * _ESCAPED_BYTES_PER_CHARACTER
    messages = sum(TextSize.of(text).bytes for text in _texts_of_messages(prompt))
    parts = len(prompt.messages) + len(prompt.tools)
    return bound.request_tokens_max + bound.message_tokens_max * parts + messages + tools


def prompt_tokens_estimated(prompt: Prompt) -> int:
    """Tokens of a prompt's own text: what a template adds is not estimated."""
    texts = (*_texts_of_messages(prompt), *_texts_of_tools(prompt))
    return sum(TextSize.of(text).estimated_tokens() for text in texts)


def _texts_of_messages(prompt: Prompt) -> list[str]:
    texts: list[str] = []
    for message in prompt.messages:
        texts += (*message.parts, message.tool_call_id)
        for call in message.tool_calls:
            texts += (call.tool_call_id, call.name, call.arguments)
    return texts


def _texts_of_tools(prompt: Prompt) -> list[str]:
    return [text for tool in prompt.tools for text in (tool.name, tool.description, tool.parameters_json_schema)]

"""Counting a growing answer whose backend counts it (BACKEND): the most it can be, and what it probably is.

What is captured before a delivery is the most tokens that the answer can be: what the backend had reported with an
earlier piece of it, and one token for each byte since. It never passes what the backend was allowed to generate. What
the backend reports in the end is charged, up to what was captured.
"""

from collections.abc import Iterator

from metergate.core.inference import Delta
from metergate.core.reservation import Estimate
from metergate.core.text_bounds import TextSize
from metergate.core.usage import TokenClass, Usage
from metergate.metering.plan import PricedPrompt

# No vocabulary is known to have a token of more bytes. An answer that is longer than so many bytes for each token that
# was asked for goes on for ever.
_BYTES_PER_TOKEN_MAX = 1_024


class BoundedAnswer:
    """The count of everything a model wrote so far; equal for every chunking of the same answer and reports (L7)."""

    __slots__ = ("_bytes", "_content", "_prefers_reasoning", "_reasoning", "_tokens_max", "usage_reported")

    def __init__(self, *, tokens_max: int, prefers_reasoning: bool) -> None:
        """``tokens_max``: what the backend may generate; ``prefers_reasoning``: which of the classes is the dearer."""
        self._tokens_max = tokens_max
        self._prefers_reasoning = prefers_reasoning
        self._bytes = 0
        self._content = self._reasoning = TextSize()  # since the report
        self.usage_reported: Usage | None = None  # the last that came with a piece of the answer

    def copy(self) -> "BoundedAnswer":
        """Return an independent count of the same answer so far."""
        copied = BoundedAnswer(tokens_max=self._tokens_max, prefers_reasoning=self._prefers_reasoning)
        copied._bytes = self._bytes
        copied._content, copied._reasoning = self._content, self._reasoning
        copied.usage_reported = self.usage_reported
        return copied

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        content = TextSize()
        for text in _contents(delta):
            content += TextSize.of(text)
        reasoning = TextSize.of(delta.reasoning_content)
        self._bytes += content.bytes + reasoning.bytes
        if delta.usage is None:
            self._content += content
            self._reasoning += reasoning
        else:
            self.usage_reported = delta.usage
            self._content = self._reasoning = TextSize()

    def encoded_characters(self, delta: Delta) -> int:
        """None: to add a delta is quick for any."""
        return 0

    @property
    def completion_tokens(self) -> int:
        """The most tokens of content and tool calls that it can be."""
        return self._most()[0]

    @property
    def reasoning_tokens(self) -> int:
        """The most tokens of reasoning that it can be."""
        return self._most()[1]

    def _most(self) -> tuple[int, int]:
        if self._bytes > self._tokens_max * _BYTES_PER_TOKEN_MAX:
            return self._tokens_max + 1, 0  # too long, whatever its tokens are
        completion = self._reported(TokenClass.COMPLETION) + self._content.bytes
        reasoning = self._reported(TokenClass.REASONING) + self._reasoning.bytes
        return self._capped(completion, reasoning)

    def estimated(self) -> tuple[int, int]:
        """What it probably is: tokens of content and tool calls, and of reasoning."""
        completion = self._reported(TokenClass.COMPLETION) + self._content.estimated_tokens()
        reasoning = self._reported(TokenClass.REASONING) + self._reasoning.estimated_tokens()
        return self._capped(completion, reasoning)

    def _reported(self, token_class: TokenClass) -> int:
        return 0 if self.usage_reported is None else self.usage_reported.get(token_class)

    def _capped(self, completion: int, reasoning: int) -> tuple[int, int]:
        """No more than was asked for; of the dearer class as many as there can be."""
        if self._prefers_reasoning:
            reasoning = min(reasoning, self._tokens_max)
            return min(completion, self._tokens_max - reasoning), reasoning
        completion = min(completion, self._tokens_max)
        return completion, min(reasoning, self._tokens_max - completion)


def estimate(priced: PricedPrompt, answer: BoundedAnswer) -> Estimate:
    """Return what a prompt and an answer so far have probably used."""
    return priced.estimate(answer.usage_reported, *answer.estimated())


def _contents(delta: Delta) -> Iterator[str]:
    yield delta.content
    for call in delta.tool_calls:
        yield from (call.name, call.arguments)

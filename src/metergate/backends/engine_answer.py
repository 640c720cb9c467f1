"""What the answers of engines have in common."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from metergate.backends.answer_checks import AnswerChecks
from metergate.core.inference import BackendEvent, Finish, TokenIds, UsageReport
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage

_log = logging.getLogger(__name__)

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
# The engine gave up: by itself, or because somebody else aborted the request.
_BROKEN_OFF = frozenset({"abort", "error"})


def finish_reason_of(reason: str, checks: AnswerChecks) -> FinishReason:
    """What an engine's finish reason means; BackendUnavailable if it did not get to the end."""
    if reason in _BROKEN_OFF:
        raise checks.unavailable(f"it ended its answer with {reason}")
    known = _FINISH_REASONS.get(reason)
    if known is None:
        # The answer is whole, only the name of its end is new: STOP promises the app the least.
        _log.warning("an engine ended an answer with a finish reason that is not known; taken for STOP")
        return FinishReason.STOP
    return known


def usage_report(
    checks: AnswerChecks, *, prompt: int, cached: int, completion: int, reasoning: int = 0
) -> list[UsageReport]:
    """The report, with its classes made disjoint; none, and one warning an answer, if it cannot be true.

    Engines count cached prompt tokens in the prompt, and reasoning in the completion.
    """
    if cached > prompt or reasoning > completion:
        checks.ignore_usage()
        return []
    tokens = {
        TokenClass.PROMPT: prompt - cached,
        TokenClass.CACHED_PROMPT: cached,
        TokenClass.COMPLETION: completion - reasoning,
        TokenClass.REASONING: reasoning,
    }
    return [UsageReport(usage=Usage.of(tokens))]


class ChunkedAnswer(ABC):
    """Reads one answer: an engine.EngineAnswer.

    Each chunk has the ids that are new; the message that completes the answer repeats the last chunk's.
    """

    def __init__(self, checks: AnswerChecks) -> None:
        self._checks = checks
        self._has_chunks = False

    def read(self, message: Any) -> Iterator[BackendEvent]:  # noqa: ANN401 - each protocol's own
        """The events of one message; BackendUnavailable if they make no sense."""
        if message.HasField("chunk"):
            self._has_chunks = True
            yield from self._token_ids(message.chunk.token_ids)
        elif message.HasField("complete"):
            if not self._has_chunks:
                yield from self._token_ids(message.complete.output_ids)
            reason = finish_reason_of(message.complete.finish_reason, self._checks)
            if self._checks.finish():
                yield Finish(reason=reason)
                yield from self._usage(message.complete)

    def _token_ids(self, token_ids: Sequence[int]) -> Iterator[TokenIds]:
        if token_ids:
            self._checks.before_delta()
            yield TokenIds(token_ids)

    @abstractmethod
    def _usage(self, complete: Any) -> list[UsageReport]:  # noqa: ANN401 - each protocol's own
        """What the message that completes the answer reports."""

"""What an OpenAI-compatible server reports of the tokens that it counted."""

from typing import Annotated

import msgspec

from metergate.core.usage import TokenClass, Usage

# A count above this is no count; every sum of such counts fits in 64 bits.
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class PromptDetails(msgspec.Struct):
    """What a usage tells of its prompt tokens."""

    cached_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: Tokens | None = None


class _Report(msgspec.Struct):
    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None  # tells whether the details are part of the two above
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's word for cached_tokens
    reasoning_tokens: Tokens | None = None  # SGLang's place for it
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


_reports = msgspec.json.Decoder(_Report)


def read_usage(raw: msgspec.Raw) -> Usage:
    """The report with its classes made disjoint; ValueError or RecursionError if it cannot be true."""
    return _disjoint(_reports.decode(raw))


def _disjoint(report: _Report) -> Usage:
    """The classes of a report, each token in one; ValueError if details are larger than what they are details of.

    Nearly all count cached tokens within the prompt's and reasoning within the completion's. Some count reasoning
    beside it (xAI), and their total says so.
    """
    prompt_details = report.prompt_tokens_details or PromptDetails()
    completion_details = report.completion_tokens_details or _CompletionDetails()
    cached = _first(prompt_details.cached_tokens, report.prompt_cache_hit_tokens)
    reasoning = _first(completion_details.reasoning_tokens, report.reasoning_tokens)
    prompt, completion = report.prompt_tokens, report.completion_tokens
    beside = None if report.total_tokens is None else report.total_tokens - prompt - completion
    if not beside or beside not in (cached, reasoning, cached + reasoning):
        return _usage_of(prompt - cached, cached, completion - reasoning, reasoning)
    # Equal amounts could be either; reasoning is what is known to be counted beside.
    cached_beside = beside == cached + reasoning or (beside == cached and beside != reasoning)
    reasoning_beside = beside == cached + reasoning or beside == reasoning
    return _usage_of(
        prompt if cached_beside else prompt - cached,
        cached,
        completion if reasoning_beside else completion - reasoning,
        reasoning,
    )


def _first(*counts: int | None) -> int:
    """The first that was said, a zero too; 0 if none was."""
    return next((count for count in counts if count is not None), 0)


def _usage_of(prompt: int, cached: int, completion: int, reasoning: int) -> Usage:
    return Usage.of(
        {
            TokenClass.PROMPT: prompt,
            TokenClass.CACHED_PROMPT: cached,
            TokenClass.COMPLETION: completion,
            TokenClass.REASONING: reasoning,
        }
    )

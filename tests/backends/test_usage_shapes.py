"""Shapes of usage that others got wrong: each token is in one class, a zero is said, and reports are of all so far."""

import json
import logging
from typing import Any

import pytest

from metergate.backends.openai_answer import AnswerReader
from metergate.core.inference import UsageReport
from metergate.core.usage import TokenClass, Usage


def used(prompt: int, cached: int, completion: int, reasoning: int) -> Usage:
    return Usage.of(
        {
            TokenClass.PROMPT: prompt,
            TokenClass.CACHED_PROMPT: cached,
            TokenClass.COMPLETION: completion,
            TokenClass.REASONING: reasoning,
        }
    )


def reports(*usages: Any) -> list[Usage]:
    """What a stream with these usages in its chunks reports, in order."""
    reader = AnswerReader(backend_id="backend-1", model_id="model-1")
    chunks = ({"choices": [], "usage": usage} for usage in usages)
    data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return [event.usage for event in reader.feed(data.encode()) if isinstance(event, UsageReport)]


CACHED = {"prompt_tokens_details": {"cached_tokens": 60}}
REASONED = {"completion_tokens_details": {"reasoning_tokens": 30}}
SHAPES: dict[str, tuple[dict[str, Any], Usage]] = {
    "cached within the prompt": ({"total_tokens": 150} | CACHED, used(40, 60, 50, 0)),
    "cached within the prompt, without a total": (CACHED, used(40, 60, 50, 0)),
    "cached beside the prompt": ({"total_tokens": 210} | CACHED, used(100, 60, 50, 0)),
    "reasoning within the completion": ({"total_tokens": 150} | REASONED, used(100, 0, 20, 30)),
    "reasoning beside the completion": ({"total_tokens": 180} | REASONED, used(100, 0, 50, 30)),
    "both within": ({"total_tokens": 150} | CACHED | REASONED, used(40, 60, 20, 30)),
    "both beside": ({"total_tokens": 240} | CACHED | REASONED, used(100, 60, 50, 30)),
    "only reasoning beside": ({"total_tokens": 180} | CACHED | REASONED, used(40, 60, 50, 30)),
    "a total that fits nothing": ({"total_tokens": 999} | CACHED | REASONED, used(40, 60, 20, 30)),
    "details of zero": (
        {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}},
        used(100, 0, 50, 0),
    ),
    "details of null": (
        {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}},
        used(100, 0, 50, 0),
    ),
    "DeepSeek's cache": ({"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}, used(40, 60, 50, 0)),
    "a zero before another word for it": (
        {"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 60},
        used(100, 0, 50, 0),
    ),
    "SGLang's reasoning": ({"reasoning_tokens": 30}, used(100, 0, 20, 30)),
    "everything cached": ({"prompt_tokens_details": {"cached_tokens": 100}}, used(0, 100, 50, 0)),
    "everything reasoning": ({"completion_tokens_details": {"reasoning_tokens": 50}}, used(100, 0, 0, 50)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_token_is_in_one_class(name: str) -> None:
    more, expected = SHAPES[name]
    assert reports({"prompt_tokens": 100, "completion_tokens": 50} | more) == [expected]


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cached_tokens": 101}},
        {"completion_tokens_details": {"reasoning_tokens": 51}},
        {"prompt_tokens_details": {"cached_tokens": -1}},
        {"completion_tokens_details": {"reasoning_tokens": 2.5}},
        {"completion_tokens": 10.0},
        {"completion_tokens": True},
        {"completion_tokens": 2**31},
        {"completion_tokens": 1e300},
        {"completion_tokens": None},
        {"total_tokens": -5},
    ],
)
def test_a_report_that_cannot_be_true_is_none(more: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert reports({"prompt_tokens": 100, "completion_tokens": 50} | more) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_reports_with_several_chunks_are_of_all_so_far_and_not_added_up() -> None:
    usages = [{"prompt_tokens": 9, "completion_tokens": tokens} for tokens in (0, 1, 1, 2)]
    assert reports(*usages, None, None)[-1] == used(9, 0, 2, 0)


def test_a_report_of_one_chunk_is_not_taken_for_all_so_far(caplog: pytest.LogCaptureFixture) -> None:
    usages = [{"prompt_tokens": 9, "completion_tokens": tokens} for tokens in (5, 3, 9, 1)]
    assert reports(*usages) == [used(9, 0, 5, 0), used(9, 0, 9, 0)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_zero_is_a_report_and_null_is_none() -> None:
    assert reports({"prompt_tokens": 0, "completion_tokens": 0}) == [Usage()]
    assert reports(None) == []

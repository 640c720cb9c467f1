"""Composing a text takes time in proportion to its length, whatever it is, and otherwise is Unicode's NFC."""

import random
import sys
import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from real_vocabularies import read_vocabulary

from metergate.core.errors import RequestInvalid
from metergate.core.inference import Message, Prompt, Role
from metergate.tokenizers.composition import NON_STARTERS_MAX, compose, compose_prompt
from metergate.tokenizers.openai_prompt import OpenAIPromptRule
from metergate.tokenizers.tail_window import TailWindowCounter

MARKS = "\u0301\u0323"  # acute and dot below: not in canonical order, so that sorting them costs the most
SECONDS_IF_LINEAR = 10  # and minutes if it is quadratic

ANY_TEXT = st.lists(
    st.sampled_from(
        ["a", "e", "A\u030a", " ", "가", "\u1100", "\u1161", "\u11a8", "\u0958", "\u0f71\u0f72", "\u0301", "\u0323"]
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=60,
).map("".join)


@given(text=ANY_TEXT)
@settings(max_examples=500, deadline=None)
def test_a_text_without_long_runs_of_marks_is_composed_as_unicode_says(text: str) -> None:
    if regex.search(r"[\P{ccc=0}\u0f73\u0f75\u0f81]{31}", text):
        return
    assert compose(text) == compose_prompt(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("unit", ["Cafe\u0301 ", "\u1100\u1161\u11a8", "e\u0301", "क\u093c", "\u11a8", "天气", "a"])
def test_a_long_text_is_composed_as_unicode_says(unit: str) -> None:
    for text in (unit * 70_000, "x" * 32_760 + unit * 3, unit):
        assert compose(text) == compose_prompt(text) == unicodedata.normalize("NFC", text)


def test_every_character_that_is_sorted_among_marks_is_counted_as_one() -> None:
    for code in range(sys.maxunicode + 1):
        first = unicodedata.normalize("NFD", chr(code))[0]
        if unicodedata.combining(first):
            with pytest.raises(RequestInvalid):
                compose_prompt(chr(code) * (NON_STARTERS_MAX + 1))


def test_of_a_longer_run_the_rest_is_left_as_it_is() -> None:
    text = "e" + "\u0323\u0301" * 20 + "e\u0301"
    assert compose(text) == unicodedata.normalize("NFC", "e" + "\u0323\u0301" * 15) + "\u0323\u0301" * 5 + "é"
    assert compose("e" + "\u0301" * 31) == "é" + "\u0301" * 30


def test_a_prompt_with_a_longer_run_is_refused_and_one_at_the_bound_is_not() -> None:
    assert compose_prompt("e" + "\u0323" * NON_STARTERS_MAX)
    with pytest.raises(RequestInvalid) as refused:
        compose_prompt("x" * 100 + "e" + "\u0323" * (NON_STARTERS_MAX + 1))
    [violation] = refused.value.violations
    assert (violation.field, "30 combining marks in a row" in violation.description) == ("messages", True)


@pytest.mark.timeout(SECONDS_IF_LINEAR)
def test_a_run_of_a_million_marks_is_counted_or_refused_at_once() -> None:
    vocabulary = read_vocabulary("qwen")
    text = "a" + MARKS * 500_000
    assert vocabulary.count_text(text) > 0
    with pytest.raises(RequestInvalid):
        vocabulary.count_rendered(text)
    prompt = Prompt(messages=(Message(role=Role.USER, parts=(text,)),))
    with pytest.raises(RequestInvalid):
        OpenAIPromptRule(vocabulary.count_prompt_text).count(prompt)


def test_a_vocabulary_that_does_not_compose_takes_any_run() -> None:
    text = "a" + MARKS * 500
    for name in ("o200k_base", "smollm2"):
        assert read_vocabulary(name).count_rendered(text) == read_vocabulary(name).count_text(text)


def test_any_chunking_of_long_runs_counts_as_the_whole() -> None:
    vocabulary = read_vocabulary("qwen")
    source = random.Random(5)
    for _ in range(40):
        marks = ["".join(source.choices(MARKS, k=source.randint(0, 70))) for _ in range(4)]
        runs = [source.choice("aeo 가\u1161.") + run for run in marks]
        text = " ".join(runs)
        counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary)
        position = 0
        while position < len(text):
            step = source.randint(1, 40)
            counter.add(text[position : position + step])
            position += step
        assert counter.tokens == vocabulary.count_text(text)

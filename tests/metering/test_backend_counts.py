"""BACKEND: the most that an answer can be is captured before it is delivered; the report is charged, within that."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metering_world import CARD, CONTEXT_TOKENS, STOP, ScriptItem, World, content, request

from metergate.core.errors import BackendUnavailable
from metergate.core.inference import Delta, Finish, Message, Prompt, Role, Tool, UsageReport
from metergate.core.rating import rate_ceil
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.text_bounds import PromptBound, TextSize, prompt_tokens_estimated, prompt_tokens_max
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.metering.bounded_answer import BoundedAnswer
from metergate.metering.buffer import DeltaBuffer
from metergate.metering.deltas import join, joins, split
from metergate.metering.limits import Limits

BOUND = PromptBound(request_tokens_max=20, message_tokens_max=5)
ASKED = "what is it"
PROMPT_MAX = 20 + 5 + len(ASKED)
PROMPT_ESTIMATED = 3  # ten ASCII characters, four a token
TEXT = "The 天空 is 蓝 🙂!"
TEXT_BYTES = len(TEXT.encode())
TEXT_ESTIMATED = 3 + 4  # eleven ASCII characters and four others


def used(prompt: int, completion: int = 0, *, cached: int = 0, reasoning: int = 0) -> Usage:
    return Usage.of(
        {
            TokenClass.PROMPT: prompt,
            TokenClass.CACHED_PROMPT: cached,
            TokenClass.COMPLETION: completion,
            TokenClass.REASONING: reasoning,
        }
    )


async def a_world(*script: ScriptItem, credit: int = 100_000, limits: Limits | None = None) -> World:
    return await World(script, prompt_bound=BOUND, limits=limits).fund(credit)


async def test_the_report_is_charged_and_the_rest_of_the_bound_goes_back() -> None:
    world = await a_world(*content(TEXT), STOP, UsageReport(usage=used(9, 8)))
    await world.stream()
    [charge] = await world.charges()
    assert charge.counting_source is CountingSource.BACKEND
    assert charge.usage_counted == charge.usage_reported == used(9, 8)
    assert charge.charged_microcredits == rate_ceil(used(9, 8), CARD)
    assert charge.captured_microcredits == rate_ceil(used(PROMPT_MAX, TEXT_BYTES), CARD)
    assert not charge.usage_mismatch
    assert await world.available() == 100_000 - charge.charged_microcredits
    assert world.sink.receipts[0].usage_counted == used(9, 8)
    assert world.sink.admissions[0].prompt_tokens == PROMPT_MAX


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_chunking_changes_the_charge(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(TEXT)), max_size=10)))
    pieces = [TEXT[start:end] for start, end in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    limits = Limits(slice_tokens=data.draw(st.integers(1, 9)), delivery_characters_max=data.draw(st.integers(1, 9)))
    report = data.draw(st.sampled_from([[UsageReport(usage=used(9, 8))], []]))

    async def run() -> None:
        world = await a_world(*content(*pieces), STOP, *report, limits=limits)
        await world.stream()
        assert world.sink.text() == TEXT
        expected = used(9, 8) if report else used(PROMPT_ESTIMATED, TEXT_ESTIMATED)
        assert world.sink.receipts[0].charged_microcredits == rate_ceil(expected, CARD)

    asyncio.run(run())


async def test_a_reported_zero_is_not_a_missing_report() -> None:
    world = await a_world(*content(TEXT), STOP, UsageReport(usage=Usage()))
    await world.stream()
    [charge] = await world.charges()
    assert (charge.usage_reported, charge.charged_microcredits) == (Usage(), 0)
    assert await world.available() == 100_000


async def test_without_a_report_the_estimate_is_charged() -> None:
    world = await a_world(*content(TEXT), STOP)
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_reported is None
    assert charge.usage_counted == used(PROMPT_ESTIMATED, TEXT_ESTIMATED)


async def test_a_report_above_what_was_captured_is_charged_that_and_flagged() -> None:
    reported = used(9, 400)
    world = await a_world(*content(TEXT), STOP, UsageReport(usage=reported))
    await world.stream()
    [charge] = await world.charges()
    captured = used(PROMPT_MAX, TEXT_BYTES)
    assert charge.usage_counted == captured
    assert charge.charged_microcredits == charge.captured_microcredits == rate_ceil(captured, CARD)
    assert charge.usage_reported == reported
    assert charge.usage_mismatch


async def test_a_whole_answer_is_charged_its_report_within_the_bound_too() -> None:
    for reported, expected in (
        (used(9, 8), used(9, 8)),
        (used(9, 400), used(PROMPT_MAX, TEXT_BYTES)),
        (None, used(PROMPT_ESTIMATED, TEXT_ESTIMATED)),
    ):
        report = [] if reported is None else [UsageReport(usage=reported)]
        world = await a_world(*content(TEXT), STOP, *report)
        completion = await world.metering.complete(world.caller, request(), time_left_seconds=None)
        assert completion.receipt.charged_microcredits == rate_ceil(expected, CARD)


async def test_hidden_reasoning_and_a_cached_prompt_are_charged_as_reported() -> None:
    reported = used(2, 6, cached=7, reasoning=5)
    world = await a_world(*content(TEXT), STOP, UsageReport(usage=reported))
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted == reported


async def test_usage_with_every_chunk_is_cumulative_and_captures_less() -> None:
    words = TEXT.split(" ")
    script: list[ScriptItem] = []
    for number, word in enumerate(words, start=1):
        script.append((Delta(content=word + " "), UsageReport(usage=used(9, number))))
    world = await a_world(*script, STOP, UsageReport(usage=used(9, len(words))))
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted == used(9, len(words))
    assert charge.captured_microcredits < rate_ceil(used(PROMPT_MAX, TEXT_BYTES), CARD)


async def test_what_reached_the_app_is_charged_when_the_backend_fails_by_its_last_report() -> None:
    held = asyncio.Event()
    world = await a_world(
        (Delta(content="one "), UsageReport(usage=used(9, 1, cached=2))),
        held,
        Delta(content="two more"),
        BackendUnavailable(model_id="model-1", problem="it broke"),
    )
    call = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    held.set()
    with pytest.raises(BackendUnavailable):
        await call
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.BACKEND_ERROR
    assert charge.usage_counted == used(9, 1 + 2, cached=2), "a token reported, and eight characters estimated"


async def test_an_app_that_leaves_is_charged_the_estimate_of_what_it_got() -> None:
    world = await a_world(Delta(content=TEXT), asyncio.Event())
    call = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    call.cancel()
    await world.settled()
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.CLIENT_CANCELLED
    assert charge.usage_counted == used(PROMPT_ESTIMATED, TEXT_ESTIMATED)


async def test_an_empty_answer_is_charged_its_prompt_as_reported() -> None:
    world = await a_world(STOP, UsageReport(usage=used(9)))
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted == used(9)


async def test_credit_that_ends_cuts_at_a_whole_character_of_what_the_bound_allows() -> None:
    world = await a_world(
        *content(TEXT), STOP, UsageReport(usage=used(9, 8)), credit=rate_ceil(used(PROMPT_MAX, 8), CARD)
    )
    await world.stream()
    [charge] = await world.charges()
    assert charge.finish_reason is FinishReason.CREDIT_EXHAUSTED
    assert world.sink.text() == "The 天", "four bytes, three, and one that the next character has no room for"
    assert charge.usage_counted == used(PROMPT_ESTIMATED, 2)


async def test_the_bound_of_an_answer_is_never_more_than_was_asked_for() -> None:
    world = await a_world(*content("x" * 90), Finish(reason=FinishReason.LENGTH), UsageReport(usage=used(9, 20)))
    await world.stream(request(max_completion_tokens=20))
    [charge] = await world.charges()
    assert len(world.sink.text()) == 90
    assert charge.captured_microcredits == rate_ceil(used(PROMPT_MAX, 20), CARD)
    assert charge.usage_counted == used(9, 20)


async def test_an_answer_without_end_is_cut_off() -> None:
    world = await a_world(*content(*["x" * 2_000] * 100), STOP)
    await world.stream(request(max_completion_tokens=2))
    assert len(world.sink.text()) == 2 * 1_024
    assert world.sink.receipts[0].finish_reason is FinishReason.LENGTH


async def test_a_crash_is_settled_at_the_estimate_of_what_was_captured() -> None:
    world = await a_world(Delta(content=TEXT), asyncio.Event())
    call = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    [reservation] = world.ledger.open_reservations()
    assert reservation.captured_microcredits == rate_ceil(used(PROMPT_MAX, TEXT_BYTES), CARD)
    world.ledger.restart()
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.CRASH
    assert charge.usage_counted == used(PROMPT_ESTIMATED, TEXT_ESTIMATED)
    assert charge.charged_microcredits == rate_ceil(charge.usage_counted, CARD)
    call.cancel()
    await world.settled()


async def test_a_prompt_beyond_the_context_by_its_bound_only_is_left_to_the_backend() -> None:
    world = await a_world(*content("ok"), STOP, UsageReport(usage=used(100, 1)))
    await world.stream(request("word " * 120))
    [sent] = world.backend.requests
    assert sent.max_completion_tokens == (CONTEXT_TOKENS - 150) // 2
    [charge] = await world.charges()
    assert charge.usage_counted == used(100, 1)


def test_a_prompts_bound_covers_its_bytes_its_messages_and_its_tools_escaped() -> None:
    prompt = Prompt(
        messages=(Message(role=Role.SYSTEM, parts=("天",)), Message(role=Role.USER, parts=("hi", "!"))),
        tools=(Tool(name="ab", description="", parameters_json_schema="{}"),),
    )
    assert prompt_tokens_max(prompt, BOUND) == 20 + 3 * 5 + 3 + 3 + 6 * 4
    assert prompt_tokens_estimated(prompt) == 1 + 1 + 1 + 1 + 1


@given(st.lists(st.text(max_size=9), max_size=9))
def test_sizes_of_parts_add_up_to_the_wholes_and_estimates_never_pass_the_bytes(parts: list[str]) -> None:
    whole = TextSize.of("".join(parts))
    total = TextSize()
    for part in parts:
        total += TextSize.of(part)
    assert total == whole
    assert whole.estimated_tokens() <= whole.bytes


def test_what_a_backend_counted_goes_with_the_end_of_a_delta() -> None:
    delta = Delta(content="abcd", usage=used(1, 2))
    first, rest = split(delta, 2)
    assert (first.usage, rest.usage) == (None, used(1, 2))
    assert split(delta, 4)[0].usage == used(1, 2)
    assert join([Delta(content="x"), delta]).usage == used(1, 2)
    assert not joins(delta, Delta(content="x"))
    assert joins(delta, Delta(content="x", usage=used(1, 3)))


@pytest.mark.parametrize("are_apart", [True, False])
def test_pieces_that_wait_together_are_counted_as_if_each_had_come_alone(are_apart: bool) -> None:
    buffer = DeltaBuffer(read_ahead_characters_max=1_000, delivery_characters_max=1_000, monotonic=lambda: 0.0)
    answer = BoundedAnswer(tokens_max=1_000, prefers_reasoning=False)

    def take() -> None:
        while (delta := buffer.take_now()) is not None:
            answer.add(delta)

    buffer.offer(Delta(content="x" * 400))
    buffer.note_usage(used(5, 10))
    if are_apart:
        take()
    buffer.offer(Delta(content="yyyy"))
    take()
    assert answer.completion_tokens == 14

"""TOKEN_IDS: a charge is the number of ids up to the last character that was delivered, however they came."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metering_world import CARD, STOP, ScriptItem, World, request
from token_codec import SPECIAL, FakeCodec

from metergate.core.catalog import ReasoningForm
from metergate.core.errors import BackendUnavailable, RequestInvalid
from metergate.core.inference import Delta, Finish, Message, Prompt, Role, Sampling, TokenIds, Tool, UsageReport
from metergate.core.rating import rate_ceil
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.metering.limits import Limits

SOON_SECONDS = 5.0
PROMPT_TOKENS = 7
TEXT = "The 天空 is 蓝 🙂!"
# Two bytes a token: characters of three and four bytes lie across tokens.
TOKENS = [TEXT.encode()[start : start + 2] for start in range(0, len(TEXT.encode()), 2)]
IDS = list(range(len(TOKENS)))


def cost(completion_tokens: int) -> int:
    return rate_ceil(Usage.of({TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.COMPLETION: completion_tokens}), CARD)


def chunked(ids: list[int], size: int) -> list[ScriptItem]:
    return [TokenIds(ids[start : start + size]) for start in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_the_charge_is_the_number_of_ids_and_says_so(size: int) -> None:
    world = await World([*chunked(IDS, size), STOP], codec=FakeCodec(TOKENS)).fund(10_000)
    await world.stream()
    assert world.sink.text() == TEXT
    [charge] = await world.charges()
    assert charge.charged_microcredits == cost(len(IDS))
    assert charge.counting_source is CountingSource.TOKEN_IDS
    [sent] = world.backend.requests
    assert len(sent.prompt_token_ids) == charge.usage_counted.get(TokenClass.PROMPT) == PROMPT_TOKENS


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_chunking_and_no_cutting_of_deliveries_changes_the_charge(data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(IDS)), max_size=12)))
    chunks = [IDS[start:end] for start, end in zip([0, *ends], [*ends, len(IDS)], strict=True)]
    limits = Limits(slice_tokens=data.draw(st.integers(1, 9)), delivery_characters_max=data.draw(st.integers(1, 9)))

    async def run() -> None:
        script: list[ScriptItem] = [TokenIds(chunk) for chunk in chunks]
        world = await World([*script, STOP], codec=FakeCodec(TOKENS), limits=limits).fund(10_000)
        await world.stream()
        assert world.sink.text() == TEXT
        assert world.sink.receipts[0].charged_microcredits == cost(len(IDS))

    asyncio.run(run())


@given(st.integers(0, len(IDS)), st.integers(1, len(IDS)))
@settings(max_examples=60, deadline=None)
def test_credit_that_ends_cuts_at_a_token_that_begins_with_a_whole_character(affordable: int, size: int) -> None:
    async def run() -> None:
        credit = max(cost(affordable), cost(1))
        world = await World([*chunked(IDS, size), STOP], codec=FakeCodec(TOKENS)).fund(credit)
        await world.stream()
        [receipt] = world.sink.receipts
        tokens = receipt.usage_counted.get(TokenClass.COMPLETION)
        assert receipt.charged_microcredits == cost(tokens) <= credit
        assert world.sink.text() == text_of(tokens) == text_of(max(1, affordable))
        if affordable < len(IDS):
            assert receipt.finish_reason is FinishReason.CREDIT_EXHAUSTED
            await world.settled()
            assert world.backend.open_generations == 0

    asyncio.run(run())


def text_of(tokens: int) -> str:
    """The characters whose every token is among the first ones."""
    return b"".join(TOKENS[:tokens]).decode(errors="ignore")


async def test_an_end_of_turn_token_is_not_charged_and_its_report_is_within_the_tolerance() -> None:
    report = UsageReport(usage=Usage.of({TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.COMPLETION: 2}))
    world = await World([TokenIds([0]), TokenIds([1]), STOP, report], codec=FakeCodec([b"Hi", SPECIAL])).fund(10_000)
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted.get(TokenClass.COMPLETION) == 1
    assert charge.usage_reported == report.usage
    assert not charge.usage_mismatch


async def test_cached_prompt_tokens_as_reported_lower_the_charge() -> None:
    reported = {TokenClass.PROMPT: 3, TokenClass.CACHED_PROMPT: 4, TokenClass.COMPLETION: 1}
    world = await World([TokenIds([0]), STOP, UsageReport(usage=Usage.of(reported))], codec=FakeCodec([b"Hi"])).fund(
        10_000
    )
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted == Usage.of(reported)
    assert charge.charged_microcredits < cost(1)


async def test_a_stop_text_ends_the_answer_and_the_generation() -> None:
    never = asyncio.Event()
    script: list[ScriptItem] = [TokenIds([0]), TokenIds([1]), never]
    world = await World(script, codec=FakeCodec([b"one EN", b"D two"])).fund(10_000)
    async with asyncio.timeout(SOON_SECONDS):
        await world.stream(request(sampling=Sampling(stop=("END",))))
    assert world.sink.text() == "one "
    [receipt] = world.sink.receipts
    assert (receipt.finish_reason, receipt.charged_microcredits) == (FinishReason.STOP, cost(1))
    assert world.backend.open_generations == 0


async def test_a_backend_that_goes_on_beyond_the_asked_length_is_ended() -> None:
    world = await World([TokenIds([0] * 50), STOP], codec=FakeCodec([b"a"])).fund(10_000)
    await world.stream(request(max_completion_tokens=3))
    [receipt] = world.sink.receipts
    assert (world.sink.text(), receipt.finish_reason) == ("aaa", FinishReason.LENGTH)
    assert receipt.charged_microcredits == cost(3)


async def test_reasoning_is_delivered_and_charged_as_such() -> None:
    tokens = [b"<think>", b"hm", b"</think>", b"yes"]
    world = await World([TokenIds([0, 1, 2, 3]), STOP], codec=FakeCodec(tokens), reasoning=ReasoningForm.THINK).fund(
        10_000
    )
    await world.stream()
    [receipt] = world.sink.receipts
    assert [(delta.reasoning_content, delta.content) for delta in world.sink.deltas] == [("hm", "yes")]
    expected = {TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.REASONING: 2, TokenClass.COMPLETION: 2}
    assert receipt.usage_counted == Usage.of(expected)


async def test_an_id_outside_the_vocabulary_before_any_text_is_charged_nothing() -> None:
    world = await World([TokenIds([9]), STOP], codec=FakeCodec([b"a"])).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    assert world.sink.receipts[0].charged_microcredits == 0


async def test_an_id_outside_the_vocabulary_after_a_delivery_ends_the_answer_with_its_charge() -> None:
    world = await World([TokenIds([0]), TokenIds([9]), STOP], codec=FakeCodec([b"a"])).fund(10_000)
    with pytest.raises(BackendUnavailable) as failure:
        await world.stream()
    [charge] = await world.charges()
    assert failure.value.charge is not None
    assert (charge.charged_microcredits, charge.close_cause) == (cost(1), CloseCause.BACKEND_ERROR)


async def test_tools_are_refused_before_anything_is_reserved() -> None:
    world = await World([TokenIds([0]), STOP], codec=FakeCodec([b"a"])).fund(10_000)
    prompt = Prompt(messages=(Message(role=Role.USER, parts=("x",)),), tools=(Tool(name="look"),))
    asked = request()
    with pytest.raises(RequestInvalid, match="tools: model-1 takes no tools"):
        await world.stream(type(asked)(request_id="r", model_id="model-1", prompt=prompt))
    assert world.backend.requests == []
    assert not world.sink.admissions


async def test_token_ids_of_a_model_that_is_counted_by_texts_are_an_answer_that_makes_no_sense() -> None:
    world = await World([Delta(content="a"), TokenIds([0]), STOP]).fund(10_000)
    with pytest.raises(BackendUnavailable, match="not counted by them"):
        await world.stream()


async def test_a_replay_delivers_the_same_text() -> None:
    world = await World([*chunked(IDS, 3), Finish(reason=FinishReason.LENGTH)], codec=FakeCodec(TOKENS)).fund(10_000)
    await world.stream()
    await world.stream()
    assert world.sink.text() == TEXT * 2
    assert world.sink.receipts[1].replayed

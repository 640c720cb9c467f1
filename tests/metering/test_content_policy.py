"""What the content policy sees, and what its verdicts do to an answer and its charge."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from metering_world import CARD, STOP, World, content, count_words, request, usage

from metergate.core.errors import ContentPolicyUnavailable
from metergate.core.inference import Delta, ToolCallDelta
from metergate.core.passage import Passage
from metergate.core.rating import rate_ceil
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.metering.limits import Limits

PROMPT_TOKENS = 3 + count_words("what is it")


def cost(text: str) -> int:
    return rate_ceil(usage(PROMPT_TOKENS, text), CARD)


class ScriptedPolicy:
    """Blocks, fails or hangs at the passage that a test says; keeps what it saw, and what was captured then."""

    def __init__(self, verdict: Callable[[Passage], bool | Exception | asyncio.Event] = lambda _: True) -> None:
        self._verdict = verdict
        self.passages: list[Passage] = []
        self.captured_microcredits: list[int] = []
        self.asked = asyncio.Event()
        self.world: World | None = None

    async def allows(self, passage: Passage) -> bool:
        self.passages.append(passage)
        if self.world is not None:
            row = self.world.ledger.books.reservations.rows[passage.reservation_id]
            self.captured_microcredits.append(row.captured_microcredits)
        self.asked.set()
        await asyncio.sleep(0)
        verdict = self._verdict(passage)
        if isinstance(verdict, Exception):
            raise verdict
        if isinstance(verdict, asyncio.Event):
            await verdict.wait()
            return True
        return verdict


# One delta a delivery, so that every piece is known.
LIMITS = Limits(slice_tokens=4, delivery_characters_max=9, content_policy_seconds_max=5.0)


async def world_with(policy: ScriptedPolicy, *script: Any, limits: Limits = LIMITS) -> World:
    policy.world = await World([*script, STOP], policy=policy, limits=limits).fund(100_000)
    return policy.world


def without(word: str) -> ScriptedPolicy:
    return ScriptedPolicy(lambda passage: word not in passage.before.content + passage.delta.content)


async def test_what_is_allowed_is_delivered_and_charged_as_without_a_policy() -> None:
    policy = ScriptedPolicy()
    world = await world_with(policy, *content("one two ", "three four"))
    await world.stream()
    assert world.sink.text() == "one two three four"
    assert world.sink.receipts[0].charged_microcredits == cost("one two three four")
    assert "".join(passage.delta.content for passage in policy.passages) == "one two three four"
    assert [passage.index for passage in policy.passages] == list(range(len(policy.passages)))


async def test_a_block_ends_the_stream_well_formed_and_what_was_delivered_is_charged() -> None:
    policy = without("bad")
    world = await world_with(policy, *content("all good ", "bad words", " and more"))
    await world.stream()
    [receipt] = world.sink.receipts
    assert world.sink.text() == "all good "
    assert (receipt.finish_reason, receipt.close_cause) == (FinishReason.CONTENT_FILTER, CloseCause.CONTENT_BLOCKED)
    assert receipt.charged_microcredits == cost("all good ") == 100_000 - await world.available()
    await world.settled()
    assert world.backend.open_generations == 0
    assert not world.ledger.open_reservations()


async def test_the_policy_is_asked_before_the_capture_of_what_it_is_shown() -> None:
    policy = without("bad")
    world = await world_with(policy, *content("all good ", "bad words"))
    await world.stream()
    assert policy.captured_microcredits == [rate_ceil(usage(PROMPT_TOKENS, ""), CARD), cost("all good ")]


async def test_a_block_of_the_first_piece_charges_the_prompt_that_the_backend_worked_through() -> None:
    world = await world_with(without("bad"), *content("bad"))
    await world.stream()
    [receipt] = world.sink.receipts
    assert world.sink.deltas == []
    assert receipt.close_cause is CloseCause.CONTENT_BLOCKED
    assert receipt.charged_microcredits == cost("")


async def test_a_whole_answer_ends_before_what_was_blocked() -> None:
    world = await world_with(without("bad"), *content("all good ", "bad words"))
    answer = await world.metering.complete(world.caller, request(), time_left_seconds=None)
    assert answer.message is not None
    assert answer.message.text() == "all good "
    assert answer.receipt.finish_reason is FinishReason.CONTENT_FILTER
    assert answer.receipt.close_cause is CloseCause.CONTENT_BLOCKED
    assert answer.receipt.charged_microcredits == cost("all good ")


@pytest.mark.parametrize(
    "delta",
    [
        Delta(content="secret"),
        Delta(reasoning_content="secret"),
        Delta(tool_calls=(ToolCallDelta(index=0, tool_call_id="c", name="f", arguments="secret"),)),
        Delta(tool_calls=(ToolCallDelta(index=0, tool_call_id="c", name="secret", arguments=""),)),
    ],
)
async def test_content_reasoning_and_tool_calls_are_all_vetted(delta: Delta) -> None:
    world = await world_with(ScriptedPolicy(lambda passage: "secret" not in str(passage.delta)), delta)
    await world.stream()
    assert world.sink.deltas == []
    assert world.sink.receipts[0].close_cause is CloseCause.CONTENT_BLOCKED


async def test_what_was_allowed_before_comes_along_up_to_its_bound() -> None:
    policy = ScriptedPolicy()
    limits = Limits(slice_tokens=4, delivery_characters_max=4, content_policy_context_characters=6)
    world = await world_with(policy, *content("abcd", "efgh", "ijkl"), limits=limits)
    await world.stream()
    assert [passage.before.content for passage in policy.passages] == ["", "abcd", "cdefgh"]


@pytest.mark.parametrize("failure", [ContentPolicyUnavailable(problem="it hung up"), asyncio.Event()])
async def test_a_policy_that_fails_or_hangs_fails_the_stream_and_nothing_unseen_is_delivered(
    failure: ContentPolicyUnavailable | asyncio.Event,
) -> None:
    policy = ScriptedPolicy(lambda passage: failure if passage.index else True)
    limits = Limits(slice_tokens=4, delivery_characters_max=9, content_policy_seconds_max=0.05)
    world = await world_with(policy, *content("all good ", "bad words"), limits=limits)
    with pytest.raises(ContentPolicyUnavailable) as caught:
        await world.stream()
    [receipt] = world.sink.receipts
    assert world.sink.text() == "all good "
    assert receipt.close_cause is CloseCause.CONTENT_POLICY_ERROR
    assert receipt.charged_microcredits == cost("all good ")
    assert caught.value.charge == receipt.charge_name()


async def test_a_policy_that_fails_before_the_first_delivery_charges_nothing() -> None:
    failure = ContentPolicyUnavailable(problem="it hung up")
    world = await world_with(ScriptedPolicy(lambda _: failure), *content("all good"))
    with pytest.raises(ContentPolicyUnavailable):
        await world.stream()
    assert await world.available() == 100_000


async def test_a_whole_answer_whose_policy_fails_is_not_returned_and_charges_nothing() -> None:
    policy = ScriptedPolicy(lambda passage: ContentPolicyUnavailable(problem="no") if passage.index else True)
    world = await world_with(policy, *content("all good ", "bad words"))
    with pytest.raises(ContentPolicyUnavailable):
        await world.metering.complete(world.caller, request(), time_left_seconds=None)
    assert await world.available() == 100_000


async def test_an_app_that_goes_away_while_the_policy_thinks_is_settled_at_what_was_delivered() -> None:
    hanging = asyncio.Event()
    policy = ScriptedPolicy(lambda passage: hanging if passage.index else True)
    world = await world_with(policy, *content("all good ", "bad words"))
    streaming = asyncio.create_task(world.stream())
    async with asyncio.timeout(5.0):
        while len(policy.passages) < 2:
            policy.asked.clear()
            await policy.asked.wait()
    streaming.cancel()
    await asyncio.wait([streaming])
    await world.settled()
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.CLIENT_CANCELLED
    assert charge.charged_microcredits == cost("all good ")
    assert not world.ledger.open_reservations()

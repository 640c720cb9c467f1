"""What a stream delivers, debits and charges, for every way it can end."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from metering_world import (
    CARD,
    STOP,
    RecordingSink,
    ScriptedBackend,
    ScriptItem,
    WordTokenizer,
    World,
    content,
    count_words,
    request,
    usage,
)

from metergate.core.errors import (
    BackendRejected,
    BackendUnavailable,
    CapReached,
    DeadlineExceeded,
    InsufficientCredit,
    MetergateError,
    ModelNotFound,
    PromptTooLong,
    RequestIdConflict,
    RequestInProgress,
    ShuttingDown,
)
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish, Sampling, ToolCallDelta, UsageReport
from metergate.core.rating import rate_ceil
from metergate.core.receipts import Admission
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from metergate.metering.limits import Limits

PIECES = ("The str", "aigh", "t road is long", " and", " winding")
ANSWER = "".join(PIECES)
PROMPT_TOKENS = 3 + count_words("what is it")


def cost(text: str) -> int:
    return rate_ceil(usage(PROMPT_TOKENS, text), CARD)


async def test_the_whole_answer_is_delivered_and_charged_at_the_ceiling_of_its_exact_cost() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream()
    assert world.sink.text() == ANSWER
    [receipt] = world.sink.receipts
    assert receipt.charged_microcredits == cost(ANSWER)
    assert receipt.usage_counted == usage(PROMPT_TOKENS, ANSWER)
    assert (receipt.finish_reason, receipt.close_cause) == (FinishReason.STOP, CloseCause.FINISHED)
    assert receipt.spendable_microcredits == await world.available() == 10_000 - cost(ANSWER)
    [charge] = await world.charges()
    assert charge.charge_id == receipt.charge_id
    assert [attempt.backend_id for attempt in charge.attempts] == ["backend-1"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
async def test_chunking_never_changes_the_price(size: int) -> None:
    pieces = [ANSWER[start : start + size] for start in range(0, len(ANSWER), size)]
    world = await World([*content(*pieces), STOP]).fund(10_000)
    await world.stream()
    assert world.sink.receipts[0].charged_microcredits == cost(ANSWER)


async def test_reasoning_and_tool_calls_are_counted_each_by_itself() -> None:
    script: list[ScriptItem] = [
        Delta(reasoning_content="let me"),
        Delta(reasoning_content=" think"),
        Delta(content="ok"),
        Delta(tool_calls=(ToolCallDelta(index=0, tool_call_id="call-1", name="look", arguments='{"a"'),)),
        Delta(tool_calls=(ToolCallDelta(index=0, arguments=": 1}"),)),
        Finish(reason=FinishReason.TOOL_CALLS),
    ]
    world = await World(script).fund(10_000)
    await world.stream()
    completion = count_words("ok") + count_words("look") + count_words('{"a": 1}')
    assert world.sink.receipts[0].usage_counted == Usage.of(
        {
            TokenClass.PROMPT: PROMPT_TOKENS,
            TokenClass.COMPLETION: completion,
            TokenClass.REASONING: count_words("let me think"),
        }
    )
    assert world.sink.receipts[0].finish_reason is FinishReason.TOOL_CALLS


async def test_an_empty_answer_is_charged_its_prompt() -> None:
    world = await World([STOP]).fund(10_000)
    await world.stream()
    assert world.sink.receipts[0].charged_microcredits == cost("") > 0


@pytest.mark.parametrize("short_by", range(1, 60, 7))
async def test_an_empty_wallet_ends_the_stream_well_formed_at_what_fits(short_by: int) -> None:
    funds = cost(ANSWER) - short_by
    world = await World([*content(*PIECES), STOP]).fund(funds)
    await world.stream()
    [receipt] = world.sink.receipts
    assert ANSWER.startswith(world.sink.text())
    assert (receipt.finish_reason, receipt.close_cause) == (
        FinishReason.CREDIT_EXHAUSTED,
        CloseCause.CREDIT_EXHAUSTED,
    )
    assert receipt.charged_microcredits == cost(world.sink.text()) <= funds
    assert world.backend.open_generations == 0


async def test_the_requests_own_limit_cuts_the_answer() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream(request(credit_limit_microcredits=cost("The straight")))
    assert world.sink.receipts[0].close_cause is CloseCause.CREDIT_LIMIT_REACHED
    assert ANSWER.startswith(world.sink.text())
    assert world.sink.text()
    assert world.sink.receipts[0].charged_microcredits == cost(world.sink.text()) <= cost("The straight")


async def test_the_authorizations_cap_cuts_the_answer_and_then_refuses_the_next() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000, cap_microcredits=cost("The straight"))
    await world.stream()
    assert world.sink.receipts[0].close_cause is CloseCause.CAP_REACHED
    assert world.sink.receipts[0].spendable_microcredits == 0
    with pytest.raises(CapReached):
        await world.stream(request(request_id="request-2"))


async def test_max_completion_tokens_holds_by_the_gateways_own_count() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream(request(max_completion_tokens=4))
    [receipt] = world.sink.receipts
    assert receipt.usage_counted.get(TokenClass.COMPLETION) <= 4
    assert receipt.finish_reason is FinishReason.LENGTH
    assert world.backend.requests[0].max_completion_tokens == 4


async def test_too_little_for_the_prompt_and_one_token_is_refused_before_any_backend() -> None:
    world = await World([STOP]).fund(cost("a") - 1)
    with pytest.raises(InsufficientCredit):
        await world.stream()
    with pytest.raises(CapReached):
        await world.stream(request(credit_limit_microcredits=1))
    assert world.backend.requests == []
    assert await world.charges() == ()


async def test_an_unknown_model_and_a_prompt_beyond_the_context_are_refused() -> None:
    world = await World([STOP]).fund(10_000)
    with pytest.raises(PromptTooLong):
        await world.stream(request("word " * 500))
    unknown = request()
    with pytest.raises(ModelNotFound):
        await world.stream(type(unknown)(request_id="r", model_id="model-9", prompt=unknown.prompt))


async def test_a_prompt_that_is_hopelessly_long_is_refused_without_counting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World([STOP]).fund(10_000)
    monkeypatch.setattr(WordTokenizer, "characters_per_token_max", 8)
    monkeypatch.delattr(WordTokenizer, "count_prompt")
    with pytest.raises(PromptTooLong):
        await world.stream(request("x" * 8 * 500))


async def test_a_backend_that_fails_before_the_first_delta_charges_nothing() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="connection refused")
    world = await World([failure]).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    [receipt] = world.sink.receipts
    assert (receipt.charge_id, receipt.charged_microcredits) == (None, 0)
    assert await world.available() == 10_000


async def test_a_backend_that_fails_later_charges_what_was_delivered_and_names_the_charge() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="connection reset")
    world = await World([*content("The str", "aigh"), failure]).fund(10_000)
    with pytest.raises(BackendUnavailable) as raised:
        await world.stream()
    [receipt] = world.sink.receipts
    assert receipt.charged_microcredits == cost("The straigh")
    assert receipt.close_cause is CloseCause.BACKEND_ERROR
    assert raised.value.charge == receipt.charge_name()


async def test_the_next_backend_serves_when_the_first_fails_before_its_first_delta() -> None:
    broken = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="connection refused")], "broken")
    sound = ScriptedBackend([*content("fine"), STOP], "sound")
    world = await World(backends=[broken, sound]).fund(10_000)
    await world.stream()
    [charge] = await world.charges()
    assert [(attempt.backend_id, attempt.problem) for attempt in charge.attempts] == [
        ("broken", "connection refused"),
        ("sound", ""),
    ]


async def test_a_request_that_a_backend_rejects_is_not_tried_elsewhere() -> None:
    first = ScriptedBackend([BackendRejected(model_id="model-1", problem="status 400")], "first")
    second = ScriptedBackend([STOP], "second")
    world = await World(backends=[first, second]).fund(10_000)
    with pytest.raises(BackendRejected):
        await world.stream()
    assert second.requests == []


@pytest.mark.parametrize(("script", "delivered"), [([], ""), (content("The str"), "The str")])
async def test_a_backend_that_keeps_silent_is_given_up(script: list[Delta], delivered: str) -> None:
    limits = Limits(slice_tokens=4, first_token_seconds_max=0.05, between_tokens_seconds_max=0.05)
    world = await World([*script, asyncio.Event()], limits=limits).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    [receipt] = world.sink.receipts
    assert receipt.close_cause is CloseCause.BACKEND_TIMEOUT
    assert receipt.charged_microcredits == (cost(delivered) if delivered else 0)
    assert world.backend.open_generations == 0


async def test_a_backend_that_ends_without_a_finish_reason_has_failed() -> None:
    world = await World(content("The str")).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()


async def test_a_request_is_ended_at_its_greatest_age() -> None:
    limits = Limits(slice_tokens=4, request_seconds_max=0.05)
    world = await World([*content("The str"), asyncio.Event()], limits=limits).fund(10_000)
    with pytest.raises(DeadlineExceeded):
        await world.stream()
    assert world.sink.receipts[0].charged_microcredits == cost("The str")
    assert world.sink.receipts[0].close_cause is CloseCause.STREAM_TOO_OLD


async def test_draining_refuses_new_requests_and_settles_what_runs() -> None:
    world = await World([*content("The str"), asyncio.Event()]).fund(10_000)
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    await world.metering.drain(0.01)
    with pytest.raises(ShuttingDown) as raised:
        await running
    assert world.sink.receipts[0].close_cause is CloseCause.DRAINED
    assert raised.value.charge == world.sink.receipts[0].charge_name()
    with pytest.raises(ShuttingDown):
        await world.stream(request(request_id="request-2"))


async def test_draining_waits_for_what_ends_in_time() -> None:
    gate = asyncio.Event()
    world = await World([*content("The str"), gate, STOP]).fund(10_000)
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    draining = asyncio.create_task(world.metering.drain(30))
    gate.set()
    await running
    await draining
    assert world.sink.receipts[0].close_cause is CloseCause.FINISHED


async def test_a_write_that_stalls_does_not_hold_up_draining() -> None:
    limits = Limits(slice_tokens=4, stalled_write_seconds_max=0.05)
    world = await World([*content("The str", "aight"), STOP], limits=limits).fund(10_000)
    world.sink.stall = asyncio.Event()
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    await world.metering.drain(0.0)
    with pytest.raises(ShuttingDown):
        await running
    [charge] = await world.charges()
    assert charge.close_cause is CloseCause.DRAINED
    assert charge.charged_microcredits == cost(world.sink.text())


async def test_a_slow_app_bounds_what_is_read_ahead_of_it() -> None:
    limits = Limits(slice_tokens=64, read_ahead_characters_max=50, delivery_characters_max=20)
    pulled = 0

    class EndlessBackend(ScriptedBackend):
        async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
            nonlocal pulled
            while True:
                await asyncio.sleep(0)
                pulled += 10
                yield Delta(content="0123456789")

    world = await World(backends=[EndlessBackend([])], limits=limits).fund(10_000)
    world.sink.stall = asyncio.Event()
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert pulled <= 20 + 50 + 10
    running.cancel()
    await asyncio.wait([running])
    await world.settled()


async def test_while_a_delivery_is_under_way_what_arrives_is_merged() -> None:
    world = await World([*content(*"abcdefghij"), STOP]).fund(10_000)
    world.sink.stall = asyncio.Event()
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    world.sink.stall.set()
    await running
    assert world.sink.text() == "abcdefghij"
    assert len(world.sink.deltas) < 5


async def test_a_stopped_request_takes_nothing_more_from_its_backend() -> None:
    class EndlessBackend(ScriptedBackend):
        async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
            while True:
                await asyncio.sleep(0)
                yield Delta(content=" ")  # which costs nothing here, so that only time ends it

    limits = Limits(slice_tokens=4, request_seconds_max=0.05)
    world = await World(backends=[EndlessBackend([])], limits=limits).fund(100_000)
    with pytest.raises(DeadlineExceeded) as raised:
        await world.stream()
    [receipt] = world.sink.receipts
    assert receipt.close_cause is CloseCause.STREAM_TOO_OLD
    assert raised.value.charge == receipt.charge_name()
    assert receipt.charged_microcredits == cost(world.sink.text())


async def test_a_tool_call_with_a_head_longer_than_a_delivery_is_delivered_whole() -> None:
    call = ToolCallDelta(index=0, tool_call_id="c" * 40, name="n" * 40, arguments="{}")
    limits = Limits(slice_tokens=4, delivery_characters_max=16)
    world = await World([Delta(tool_calls=(call,)), Finish(reason=FinishReason.TOOL_CALLS)], limits=limits).fund(10_000)
    await world.stream()
    pieces = [piece for delta in world.sink.deltas for piece in delta.tool_calls]
    assert [piece.name for piece in pieces if piece.name] == ["n" * 40]
    assert "".join(piece.arguments for piece in pieces) == "{}"


@pytest.mark.parametrize(
    "last_words", [asyncio.Event(), BackendUnavailable(model_id="model-1", problem="connection reset")]
)
async def test_an_answer_that_had_finished_is_whole_whatever_happens_to_its_connection(
    last_words: asyncio.Event | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metergate.metering.reader.USAGE_SECONDS_MAX", 0.05)
    world = await World([*content(*PIECES), STOP, last_words]).fund(10_000)
    await world.stream()
    assert world.sink.receipts[0].close_cause is CloseCause.FINISHED
    assert world.sink.receipts[0].charged_microcredits == cost(ANSWER)


async def test_the_backend_that_was_called_is_on_the_charge_whoever_ended_the_request() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream(request(max_completion_tokens=4))
    [charge] = await world.charges()
    assert [(attempt.backend_id, attempt.problem) for attempt in charge.attempts] == [("backend-1", "")]


async def test_an_app_that_leaves_before_any_backend_was_called_is_charged_nothing() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)

    class GoneSink(RecordingSink):
        async def admit(self, admission: Admission) -> None:
            raise asyncio.CancelledError

    world.sink = GoneSink(world.ledger)
    with pytest.raises(asyncio.CancelledError):
        await world.stream()
    await world.settled()
    assert world.backend.requests == []
    assert await world.available() == 10_000


async def test_a_defect_that_is_no_exception_is_settled_too() -> None:
    class Panic(BaseException):
        pass

    class PanickingSink(RecordingSink):
        async def deliver(self, delta: Delta) -> None:
            await super().deliver(delta)
            raise Panic

    world = await World([*content(*PIECES), STOP]).fund(10_000)
    world.sink = PanickingSink(world.ledger)
    with pytest.raises(MetergateError):
        await world.stream()
    assert world.sink.receipts[0].close_cause is CloseCause.GATEWAY_ERROR
    assert world.ledger.open_reservations() == []


async def test_counts_that_fall_in_one_class_and_rise_in_another_stay_within_the_token_limit() -> None:
    # Reasoning peaks at 3 tokens and falls to 1; then the answer may still use what is left of 4.
    script: list[ScriptItem] = [
        Delta(reasoning_content="straigh"),
        Delta(reasoning_content="t"),
        Delta(content="one two"),
        STOP,
    ]
    world = await World(script).fund(10_000)
    await world.stream(request(max_completion_tokens=4))
    assert world.sink.text() == "one two"
    assert world.sink.receipts[0].close_cause is CloseCause.FINISHED


async def test_one_enormous_delta_is_delivered_in_bounded_pieces() -> None:
    limits = Limits(slice_tokens=4, delivery_characters_max=10)
    world = await World([*content(ANSWER), STOP], limits=limits).fund(10_000)
    await world.stream()
    assert world.sink.text() == ANSWER
    assert max(len(delta.content) for delta in world.sink.deltas) <= 10
    assert world.sink.receipts[0].charged_microcredits == cost(ANSWER)


async def test_the_same_id_with_the_same_content_replays_the_receipt_and_the_text_and_charges_once() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream()
    first = world.sink
    world.sink = RecordingSink(world.ledger)
    await world.stream()
    assert world.sink.receipts[0].replayed
    assert world.sink.receipts[0].charge_id == first.receipts[0].charge_id
    assert world.sink.text() == first.text()
    assert len(await world.charges()) == 1
    assert len(world.backend.requests) == 1


async def test_a_whole_answer_that_was_cancelled_is_never_replayed_for_the_price_of_its_prompt() -> None:
    world = await World([*content(*PIECES), asyncio.Event()]).fund(10_000)
    running = asyncio.create_task(world.metering.complete(world.caller, request(), time_left_seconds=None))
    await world.backend.played.wait()
    running.cancel()
    await asyncio.wait([running])
    await world.settled()
    await world.stream()
    assert world.sink.receipts[0].replayed
    assert world.sink.receipts[0].charged_microcredits == cost("")
    assert world.sink.text() == ""


async def test_a_replay_to_an_app_that_does_not_read_does_not_hold_up_draining() -> None:
    limits = Limits(slice_tokens=4, stalled_write_seconds_max=0.05)
    world = await World([*content(*PIECES), STOP], limits=limits).fund(10_000)
    await world.stream()
    world.sink = RecordingSink(world.ledger, stall=asyncio.Event())
    replaying = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    await world.metering.drain(0.0)
    with pytest.raises(ShuttingDown):
        await replaying


async def test_the_same_id_with_other_content_is_refused() -> None:
    world = await World([STOP]).fund(10_000)
    await world.stream()
    with pytest.raises(RequestIdConflict):
        await world.stream(request("something else"))


async def test_a_request_that_still_runs_is_not_run_twice() -> None:
    gate = asyncio.Event()
    world = await World([*content("The str"), gate, STOP]).fund(10_000)
    running = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    with pytest.raises(RequestInProgress):
        await world.metering.stream(world.caller, request(), RecordingSink(world.ledger), time_left_seconds=None)
    gate.set()
    await running


async def test_an_id_whose_request_ended_uncharged_may_run_again() -> None:
    world = await World([BackendUnavailable(model_id="model-1", problem="down")]).fund(10_000)
    with pytest.raises(BackendUnavailable):
        await world.stream()
    world.backend.script = [*content("fine"), STOP]
    world.sink = RecordingSink(world.ledger)
    await world.stream()
    assert world.sink.text() == "fine"


async def test_a_report_is_recorded_and_flagged_only_beyond_the_tolerance() -> None:
    text = "The straight"
    for reported, flagged in ((count_words(text) - 1, False), (count_words(text) - 2, True)):
        report = UsageReport(usage=Usage.of({TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.COMPLETION: reported}))
        world = await World([*content(text), STOP, report]).fund(10_000)
        await world.stream()
        [charge] = await world.charges()
        assert charge.usage_mismatch is flagged
        assert charge.usage_reported == report.usage
        assert charge.charged_microcredits == cost(text)


@pytest.mark.parametrize(
    ("reason", "stop", "more_tokens", "flagged"),
    [
        (FinishReason.LENGTH, (), 4, False),  # three of a character that was cut, and the tolerance of one
        (FinishReason.LENGTH, (), 5, True),
        (FinishReason.LENGTH, ("海",), 5, True),  # not what it ended at
        (FinishReason.LENGTH, (), -1, False),
        (FinishReason.LENGTH, (), -2, True),  # fewer than there is text for
        (FinishReason.STOP, (), 4, False),  # a model, too, may end within a character
        (FinishReason.STOP, (), 5, True),
        (FinishReason.STOP, (), -2, True),
        (FinishReason.STOP, (".", "海."), 8, False),  # four bytes of the longest stop text on top
        (FinishReason.STOP, (".", "海."), 9, True),
        (FinishReason.STOP, (".", "海."), -2, True),
        (FinishReason.TOOL_CALLS, ("海.",), 2, True),
    ],
)
async def test_tokens_at_the_end_of_an_answer_that_have_no_text_are_no_mismatch(
    reason: FinishReason, stop: tuple[str, ...], more_tokens: int, flagged: bool
) -> None:
    text = "The straight"
    reported = {TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.COMPLETION: count_words(text) + more_tokens}
    world = await World([*content(text), Finish(reason=reason), UsageReport(usage=Usage.of(reported))]).fund(10_000)
    await world.stream(request(sampling=Sampling(stop=stop)))
    [charge] = await world.charges()
    assert charge.usage_mismatch is flagged


async def test_what_a_backend_had_reported_of_an_answer_that_the_gateway_ended_is_no_mismatch() -> None:
    """It read ahead: usage that comes with each chunk is of more than was delivered."""
    ahead = UsageReport(usage=Usage.of({TokenClass.PROMPT: PROMPT_TOKENS, TokenClass.COMPLETION: 90}))
    events: tuple[BackendEvent, ...] = (*content("one two three four five six seven", " eight nine ten"), ahead)
    world = await World([events, asyncio.Event()]).fund(10_000)
    await world.stream(request(max_completion_tokens=4))
    [charge] = await world.charges()
    assert (charge.close_cause, charge.finish_reason) == (CloseCause.FINISHED, FinishReason.LENGTH)
    assert charge.usage_reported == ahead.usage
    assert not charge.usage_mismatch


async def test_a_reported_cached_prompt_lowers_the_charge() -> None:
    report = UsageReport(usage=Usage.of({TokenClass.PROMPT: PROMPT_TOKENS - 2, TokenClass.CACHED_PROMPT: 2}))
    world = await World([STOP, report]).fund(10_000)
    await world.stream()
    [charge] = await world.charges()
    assert charge.usage_counted == report.usage
    assert charge.charged_microcredits == rate_ceil(report.usage, CARD) < cost("")


async def test_the_apps_deadline_is_told_from_its_cancel() -> None:
    for time_left, cause in ((0.0, CloseCause.DEADLINE_EXCEEDED), (60.0, CloseCause.CLIENT_CANCELLED)):
        world = await World([*content("The str"), asyncio.Event()]).fund(10_000)
        running = asyncio.create_task(world.stream(time_left_seconds=time_left))
        await world.sink.delivered.wait()
        running.cancel()
        await asyncio.wait([running])
        await world.settled()
        [charge] = await world.charges()
        assert charge.close_cause is cause
        assert charge.charged_microcredits == cost("The str")


async def test_only_a_stream_waits_for_its_first_token_so_only_its_reservation_is_urgent() -> None:
    world = await World([*content(*PIECES), STOP]).fund(10_000)
    await world.stream()
    await world.metering.complete(world.caller, request(request_id="request-2"), time_left_seconds=None)
    assert world.ledger.urgent_reservations == [True, False]

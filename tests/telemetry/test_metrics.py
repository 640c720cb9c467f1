"""The numbers after real calls through the metering use case."""

import asyncio
import contextlib
import random
import shutil
import string
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from metering_world import CARD, STOP, KeepingBackend, RecordingSink, ScriptedBackend, World, content, request
from prometheus_client.parser import text_string_to_metric_families

from metergate.core import errors
from metergate.core.accounts import AccountBalance
from metergate.core.audit import AuditRound, Difference, DifferenceKind
from metergate.core.catalog import Catalog, Model
from metergate.core.errors import (
    BackendUnavailable,
    ContentPolicyUnavailable,
    InsufficientCredit,
    MetergateError,
    ModelNotFound,
)
from metergate.core.inference import UsageReport
from metergate.core.passage import Passage
from metergate.core.rating import rate_ceil
from metergate.core.rows import Authorization, Channel
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.metering.limits import Limits
from metergate.ports import CallStart, Commit, Delivery, Recovery
from metergate.telemetry.event_loop import SAMPLE_SECONDS, sample_lag
from metergate.telemetry.families import FAMILIES
from metergate.telemetry.metrics import (
    APPS_MAX,
    OTHER_APP,
    OWN_APP,
    REASONS,
    UNKNOWN_MODEL,
    BackendLoad,
    Metrics,
    outcome_of,
)

MODEL = Model(
    model_id="model-1",
    display_name="Model 1",
    provider_id="provider-1",
    context_tokens=500,
    counting_source=CountingSource.TOKENIZER,
    backend_ids=("backend-1",),
    rate_cards=(CARD,),
    usage_tolerance_tokens=1,
)

CALLER = Authorization(
    authorization_id="authorization-1",
    subscriber_id="subscriber-1",
    app_id="app-1",
    channel=Channel.APP,
    cap_microcredits=None,
    allowed_models=(),
    charged_microcredits=0,
    reserved_microcredits=0,
    create_time_us=0,
    revoke_time_us=None,
)

# "what is it": 3 of the message and 2 + 1 + 1 of its words; 2.5 microcredits each.
PROMPT_TOKENS, PROMPT_MICROCREDITS = 7, 18


def metrics() -> Metrics:
    return Metrics(Catalog({"model-1": MODEL}), time.monotonic)


def start(**fields: object) -> CallStart:
    call = CallStart(verb="StreamComplete", caller=CALLER, model_id="model-1", request_id="r", trace_context={})
    return replace(call, **fields)  # type: ignore[arg-type]


Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def series(observer: Metrics) -> Series:
    """Every sample of the exposition, by name and labels."""
    text = observer.render("")[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(observer: Metrics, name: str, **labels: str) -> float | None:
    return series(observer).get((f"metergate_{name}", frozenset(labels.items())))


def label_values(observer: Metrics, name: str, label: str) -> set[str]:
    samples = (labels for sample, labels in series(observer) if sample == f"metergate_{name}")
    return {dict(labels)[label] for labels in samples}


def usage_report(prompt: int, completion: int) -> UsageReport:
    return UsageReport(usage=Usage.of({TokenClass.PROMPT: prompt, TokenClass.COMPLETION: completion}))


async def play(
    observer: Metrics,
    script: Iterable[object],
    *,
    microcredits: int = 10_000,
    backends: list[ScriptedBackend] | None = None,
) -> World:
    """One stream through the use case; its error is the app's."""
    world = await World(script, backends=backends, observers=[observer]).fund(microcredits)  # type: ignore[arg-type]
    with contextlib.suppress(MetergateError):
        await world.stream()
    await world.settled()
    return world


async def test_a_stream_that_ends_well_is_counted_timed_and_charged() -> None:
    observer = metrics()
    world = await play(observer, [*content("one ", "two"), STOP, usage_report(PROMPT_TOKENS, 2)])
    charge = (await world.charges())[0]
    labels = {"verb": "StreamComplete", "outcome": "OK", "model": "model-1", "app": "app-1"}
    assert value(observer, "requests_total", **labels) == 1
    assert value(observer, "request_seconds_count", verb="StreamComplete") == 1
    assert value(observer, "reservations_closed_total", close_cause="FINISHED", model="model-1") == 1
    assert value(observer, "tokens_total", token_class="PROMPT", model="model-1") == PROMPT_TOKENS
    completion = charge.usage_counted.get(TokenClass.COMPLETION)
    assert value(observer, "tokens_total", token_class="COMPLETION", model="model-1") == completion
    charged = value(observer, "charged_microcredits_total", model="model-1", app="app-1")
    assert charged == charge.charged_microcredits
    captured = value(observer, "captured_microcredits_total", model="model-1")
    given_back = value(observer, "given_back_microcredits_total", model="model-1")
    assert captured == charge.captured_microcredits
    assert given_back is not None
    assert captured == charged + given_back
    assert value(observer, "backend_attempts_total", backend="backend-1") == 1
    for part in ("backend", "gateway"):
        assert value(observer, "first_token_seconds_count", part=part, model="model-1") == 1
        deliveries_after = len(world.sink.deltas) - 1
        assert value(observer, "between_deliveries_seconds_count", part=part, model="model-1") == deliveries_after
    assert value(observer, "capture_seconds_count") == len(world.sink.deltas)


async def test_time_of_the_backend_is_told_from_time_of_the_gateway() -> None:
    observer = metrics()
    call = observer.call_began(start())
    call.delivered(
        Delivery(characters=1, is_first=True, backend_seconds=2.0, gateway_seconds=0.004, capture_seconds=0.001)
    )
    call.delivered(
        Delivery(characters=1, is_first=False, backend_seconds=0.02, gateway_seconds=0.002, capture_seconds=0.001)
    )
    assert value(observer, "first_token_seconds_sum", part="backend", model="model-1") == 2.0
    assert value(observer, "first_token_seconds_sum", part="gateway", model="model-1") == 0.004
    assert value(observer, "between_deliveries_seconds_sum", part="backend", model="model-1") == 0.02
    assert value(observer, "between_deliveries_seconds_bucket", part="backend", model="model-1", le="0.01") == 0
    assert value(observer, "between_deliveries_seconds_bucket", part="backend", model="model-1", le="0.025") == 1
    assert value(observer, "between_deliveries_seconds_bucket", part="backend", model="model-1", le="+Inf") == 1


async def test_a_whole_answer_is_charged_but_has_no_deliveries_to_time() -> None:
    observer = metrics()
    world = await World([*content("one ", "two"), STOP], observers=[observer]).fund(10_000)
    await world.metering.complete(world.caller, request(), time_left_seconds=None)
    assert value(observer, "requests_total", verb="Complete", outcome="OK", model="model-1", app="app-1") == 1
    assert value(observer, "first_token_seconds_count", part="gateway", model="model-1") is None


async def test_a_request_that_is_asked_again_is_a_replay() -> None:
    observer = metrics()
    world = await play(observer, [*content("one"), STOP])
    assert value(observer, "replays_total", model="model-1") is None
    world.sink = RecordingSink(world.ledger)
    await world.stream()
    assert value(observer, "replays_total", model="model-1") == 1
    assert value(observer, "tokens_total", token_class="PROMPT", model="model-1") == PROMPT_TOKENS


async def test_a_count_of_tokens_is_no_replay() -> None:
    observer = metrics()
    world = await World(observers=[observer]).fund(10_000)
    await world.metering.count_tokens(world.caller, "model-1", request().prompt, None)
    assert value(observer, "requests_total", verb="CountTokens", outcome="OK", model="model-1", app="app-1") == 1
    assert value(observer, "replays_total", model="model-1") is None


async def test_a_refused_request_is_counted_by_its_reason() -> None:
    observer = metrics()
    await play(observer, [], microcredits=1)
    outcome = InsufficientCredit.reason
    labels = {"verb": "StreamComplete", "outcome": outcome, "model": "model-1", "app": "app-1"}
    assert value(observer, "requests_total", **labels) == 1
    assert value(observer, "backend_attempts_total", backend="backend-1") is None


async def test_what_backends_did_for_nothing_is_the_operators_cost() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="connection refused")
    observer = metrics()
    await play(observer, [], backends=[ScriptedBackend([failure], "first"), ScriptedBackend([failure], "second")])
    for backend in ("first", "second"):
        assert value(observer, "backend_attempts_total", backend=backend) == 1
        assert value(observer, "backend_failures_total", backend=backend) == 1
    labels = {"model": "model-1", "reason": "released"}
    assert value(observer, "operator_cost_microcredits_total", **labels) == 2 * PROMPT_MICROCREDITS
    assert value(observer, "captured_microcredits_total", model="model-1") == PROMPT_MICROCREDITS
    assert value(observer, "given_back_microcredits_total", model="model-1") == PROMPT_MICROCREDITS


async def test_an_attempt_that_never_reached_its_backend_costs_the_operator_nothing() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="connection refused", was_reached=False)
    observer = metrics()
    good = ScriptedBackend([*content("one"), STOP], "second")
    await play(observer, [], backends=[ScriptedBackend([failure], "first"), good])
    assert value(observer, "operator_cost_microcredits_total", model="model-1", reason="attempt") is None
    assert value(observer, "backend_failovers_total", backend="first") == 1
    assert value(observer, "backend_failovers_total", backend="second") is None


async def test_a_repeat_to_the_same_backend_is_no_failure_no_failover_and_no_cost() -> None:
    crossed = BackendUnavailable(model_id="model-1", problem="it closed the connection", connection_was_kept=True)
    failure = BackendUnavailable(model_id="model-1", problem="HTTP 500")
    observer = metrics()
    failing = ScriptedBackend([failure], "first")
    await play(observer, [], backends=[failing, KeepingBackend([crossed], [*content("one"), STOP], "second")])
    assert value(observer, "backend_repeats_total", backend="second") == 1
    assert value(observer, "backend_attempts_total", backend="second") == 2
    assert value(observer, "backend_failures_total", backend="second") is None
    assert value(observer, "backend_failovers_total", backend="second") is None
    assert value(observer, "backend_failovers_total", backend="first") == 1
    cost = value(observer, "operator_cost_microcredits_total", model="model-1", reason="attempt")
    assert cost == PROMPT_MICROCREDITS  # of the backend that failed


class Wordlist:
    """Blocks, fails or hangs at a word."""

    def __init__(self, *, blocks: str = "", fails: str = "", hangs: str = "") -> None:
        self._blocks, self._fails, self._hangs = blocks, fails, hangs

    async def allows(self, passage: Passage) -> bool:
        text = passage.delta.content
        if self._hangs and self._hangs in text:
            await asyncio.Event().wait()
        if self._fails and self._fails in text:
            raise ContentPolicyUnavailable(problem="it is away")
        return not self._blocks or self._blocks not in text


@pytest.mark.parametrize(
    ("policy", "allowed", "blocked", "failed"),
    [
        (Wordlist(), 3, 0, 0),
        (Wordlist(blocks="seven"), 2, 1, 0),
        (Wordlist(fails="seven"), 2, 0, 1),
        (Wordlist(hangs="seven"), 2, 0, 1),
    ],
    ids=["allows", "blocks", "fails", "is too slow"],
)
async def test_each_call_of_the_content_policy_is_counted_by_what_it_said_and_timed(
    policy: Wordlist, allowed: int, blocked: int, failed: int
) -> None:
    observer = metrics()
    # One delta a delivery.
    limits = Limits(slice_tokens=4, delivery_characters_max=6, content_policy_seconds_max=0.2)
    world = await World(
        [*content("three ", "eight ", "seven "), STOP], policy=policy, limits=limits, observers=[observer]
    ).fund(10_000)
    with contextlib.suppress(MetergateError):
        await world.stream()
    for result, calls in (("allowed", allowed), ("blocked", blocked), ("failed", failed)):
        assert value(observer, "content_policy_calls_total", result=result, model="model-1") == calls
    assert value(observer, "content_policy_seconds_count") == allowed + blocked + failed


async def test_without_a_content_policy_none_is_counted() -> None:
    observer = metrics()
    await play(observer, [*content("one"), STOP])
    assert value(observer, "content_policy_calls_total", result="allowed", model="model-1") is None


def test_the_pool_shows_what_each_backend_does_now_and_forgets_those_that_are_gone() -> None:
    observer = metrics()
    observer.pooled(
        {
            "a": BackendLoad(in_flight=3, queued=2, is_up=True, ejected={"model-1": False}),
            "b": BackendLoad(in_flight=0, queued=0, is_up=False, ejected={"model-1": True}),
        }
    )
    shown = ("backend_in_flight_requests", "backend_queued_requests", "backend_up")
    assert [value(observer, name, backend="a") for name in shown] == [3, 2, 1]
    assert [value(observer, name, backend="b") for name in shown] == [0, 0, 0]
    assert [value(observer, "backend_ejected", backend=name, model="model-1") for name in "ab"] == [0, 1]
    assert value(observer, "backend_ejections_total", backend="b", model="model-1") == 0
    observer.pooled({"a": BackendLoad(in_flight=0, queued=0, is_up=True, ejected={"model-1": False})})
    assert [value(observer, name, backend="b") for name in shown] == [None] * 3
    assert value(observer, "backend_ejected", backend="b", model="model-1") is None


def test_waits_and_ejections_are_counted() -> None:
    observer = metrics()
    observer.waited("model-1", 0.2, has_place=True)
    observer.waited("no such model", 5.0, has_place=False)
    observer.ejected("a", "model-1")
    assert value(observer, "backend_queue_seconds_count", result="served", model="model-1") == 1
    assert value(observer, "backend_queue_seconds_sum", result="refused", model="(unknown)") == 5.0
    assert value(observer, "backend_ejections_total", backend="a", model="model-1") == 1


async def test_a_failed_attempt_before_the_one_that_was_charged_is_the_operators_cost() -> None:
    failure = BackendUnavailable(model_id="model-1", problem="connection refused")
    observer = metrics()
    good = ScriptedBackend([*content("one"), STOP], "second")
    await play(observer, [], backends=[ScriptedBackend([failure], "first"), good])
    labels = {"model": "model-1", "reason": "attempt"}
    assert value(observer, "operator_cost_microcredits_total", **labels) == PROMPT_MICROCREDITS
    assert value(observer, "usage_reports_total", model="model-1", backend="second", result="missing") == 1


@pytest.mark.parametrize(
    ("reported", "result", "larger"),
    [(2, "match", None), (3, "match", "reported"), (30, "mismatch", "reported"), (0, "mismatch", "counted")],
)
async def test_what_a_backend_reports_is_set_against_the_count(reported: int, result: str, larger: str | None) -> None:
    observer = metrics()
    await play(observer, [*content("one two"), STOP, usage_report(PROMPT_TOKENS, reported)])
    labels = {"model": "model-1", "backend": "backend-1"}
    assert value(observer, "usage_reports_total", **labels, result=result) == 1
    difference = value(observer, "usage_difference_tokens_total", **labels, larger=larger or "reported")
    assert difference == (abs(reported - 2) or None)
    excess = rate_ceil(usage_report(PROMPT_TOKENS, reported).usage, CARD) - rate_ceil(
        usage_report(PROMPT_TOKENS, 2).usage, CARD
    )
    cost = value(observer, "operator_cost_microcredits_total", model="model-1", reason="reported")
    assert cost == (excess if excess > 0 else None)


async def test_an_app_that_goes_away_is_cancelled_and_pays() -> None:
    observer = metrics()
    world = await World([*content("one"), asyncio.Event()], observers=[observer]).fund(10_000)
    streaming = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    streaming.cancel()
    await asyncio.wait([streaming])
    await world.settled()
    labels = {"verb": "StreamComplete", "outcome": "CANCELLED", "model": "model-1", "app": "app-1"}
    assert value(observer, "requests_total", **labels) == 1
    assert value(observer, "reservations_closed_total", close_cause="CLIENT_CANCELLED", model="model-1") == 1


async def test_transactions_are_counted_whether_they_fail_or_not() -> None:
    observer = metrics()
    for has_failed in (False, False, True):
        observer.committed(Commit(operations=3, seconds=0.002, queued=0, expired_microcredits=7, has_failed=has_failed))
    assert value(observer, "store_commits_total", result="ok") == 2
    assert value(observer, "store_commits_total", result="failed") == 1
    assert value(observer, "store_commit_operations_bucket", le="2.0") == 0
    assert value(observer, "store_commit_operations_bucket", le="4.0") == 3
    assert value(observer, "store_commit_seconds_count") == 3
    assert value(observer, "expired_microcredits_total") == 21


async def test_labels_are_bounded_whatever_clients_send() -> None:
    observer, noise = metrics(), random.Random(3)
    for number in range(2_000):
        text = "".join(noise.choices(string.printable + "模型\u2028\x00", k=noise.randint(1, 300)))
        caller = replace(CALLER, app_id=f"{text}{number}")
        call = observer.call_began(start(caller=caller, model_id=text, request_id=text))
        call.ended(noise.choice([ModelNotFound(model_id=text), ValueError(text), KeyboardInterrupt(), None]))
    assert label_values(observer, "requests_total", "model") == {UNKNOWN_MODEL}
    apps = label_values(observer, "requests_total", "app")
    assert len(apps) == APPS_MAX + 1
    assert OTHER_APP in apps
    outcomes = {"MODEL_NOT_FOUND", "INTERNAL", "OK"}
    assert label_values(observer, "requests_total", "outcome") == outcomes
    assert len(series(observer)) < (APPS_MAX + 1) * len(outcomes) + 1_000


async def test_a_subscribers_own_key_is_no_app() -> None:
    observer = metrics()
    observer.call_began(start(caller=replace(CALLER, app_id=""))).ended(None)
    assert label_values(observer, "requests_total", "app") == {OWN_APP}


def test_every_reason_of_an_error_is_an_outcome_and_nothing_else_is() -> None:
    class Foreign(MetergateError):
        """What no table knows."""

        reason = "what the client likes"

    assert outcome_of(errors.StoreUnavailable()) == "STORE_UNAVAILABLE"
    assert outcome_of(Foreign()) == "INTERNAL"
    assert outcome_of(asyncio.CancelledError()) == "CANCELLED"
    assert {"INSUFFICIENT_CREDIT", "BACKEND_UNAVAILABLE", "INTERNAL"} <= REASONS


def test_two_gateways_of_one_process_count_apart() -> None:
    one, other = metrics(), metrics()
    one.call_began(start()).ended(None)
    assert label_values(other, "requests_total", "model") == set()


def test_every_metric_of_the_table_is_exposed_with_its_labels() -> None:
    observer = metrics()
    call = observer.call_began(start())
    call.ended(None)
    exposed = {family.name: family.type for family in text_string_to_metric_families(observer.render("")[0].decode())}
    for family in FAMILIES:
        assert exposed[family.name.removesuffix("_total")] == family.kind


def test_openmetrics_is_spoken_to_those_who_ask_for_it() -> None:
    body, content_type = metrics().render("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_promtool_finds_nothing_wrong() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    observer = metrics()
    await play(observer, [*content("one two"), STOP, usage_report(PROMPT_TOKENS, 30)])
    body, _ = observer.render("")
    result = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=body, capture_output=True, check=False, timeout=20
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout + result.stderr == b""


async def test_a_loop_that_is_held_up_is_seen_to_lag() -> None:
    observer = metrics()
    sampling = asyncio.create_task(sample_lag(observer.loop_lag_seconds))
    await asyncio.sleep(0)
    time.sleep(2 * SAMPLE_SECONDS)  # noqa: ASYNC251 - this is what it is to see
    await asyncio.sleep(SAMPLE_SECONDS)  # due after the sampler's, so that it comes after it
    sampling.cancel()
    lag = value(observer, "event_loop_lag_seconds_sum")
    assert lag is not None
    assert lag > 0.8 * SAMPLE_SECONDS


def test_rounds_of_the_audit_are_counted_and_the_accounts_are_shown() -> None:
    observer = metrics()
    assert value(observer, "audited_subscribers_total", result="different") == 0
    difference = Difference(kind=DifferenceKind.GRANT, subscriber_id="alice", resource_id="g", sentence="It differs.")
    balances = {
        name: AccountBalance(account=name, debited_microcredits=debited, credited_microcredits=credited)
        for name, debited, credited in (("payments", 2**60 + 1, 0), ("grants", 5, 2**60))
    }
    observer.audited(
        AuditRound(subscribers=9, different=1, differences=(difference,), account_balances=balances, seconds=0.5)
    )
    assert value(observer, "audited_subscribers_total", result="ok") == 8
    assert value(observer, "audited_subscribers_total", result="different") == 1
    assert value(observer, "audit_differences_total", kind="GRANT") == 1
    assert value(observer, "audit_seconds_sum") == 0.5
    assert value(observer, "account_microcredits", account="payments") == -(2.0**60)
    assert value(observer, "account_imbalance_microcredits") == -6, "added up before it is rounded to a float"


def test_looks_for_abandoned_and_old_reservations_are_counted() -> None:
    observer = metrics()
    observer.swept(Recovery(settled=3, stuck=2))
    observer.swept(Recovery(settled=1, stuck=0))
    observer.pruned.inc(7)
    assert value(observer, "recovered_reservations_total") == 4
    assert value(observer, "stuck_reservations") == 0
    assert value(observer, "pruned_reservations_total") == 7

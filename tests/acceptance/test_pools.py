"""A model of several backends: whatever some of them do, apps are served by the others, once, at one price."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from app_client import Answer, App, cause, inference
from gateway_process import Books, cost, openai_backend
from open_gateway import open_gateway
from scripted_backend import CLOSE, HANG, RESET, Drip, Step, head, scripted_server
from word_model import WordModel, speaking

from metergate.core.standing import FAILURES_MAX

WORDS = 10

# What is silent for longer is given up. A busy machine must not be taken for a silent backend.
PATIENCE_SECONDS = 2.0
LIMITS = {"first_token_seconds_max": PATIENCE_SECONDS, "between_tokens_seconds_max": PATIENCE_SECONDS}


async def answers(app: App, names: Sequence[str]) -> list[Answer]:
    streams = [app.stream(inference(name)) for name in names]
    return [await stream.ended() for stream in streams]


def check(answer: Answer, model: WordModel, books: Books, request_id: str) -> None:
    """It was served whole, and charged once what it costs."""
    assert answer.refusal is None, answer.refusal
    assert answer.text == model.text(WORDS)
    charged_microcredits, close_cause = books.charges()[request_id]
    assert charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)
    assert close_cause == "FINISHED"


FAILING: list[tuple[str, list[Step]]] = [
    ("500", [head("text/plain", "500 Internal Server Error"), b"oops", CLOSE]),
    ("429", [head("application/json", "429 Too Many Requests"), b"{}", CLOSE]),
    ("closed", [CLOSE]),
    ("reset", [RESET]),
    ("head only", [head(), CLOSE]),
    ("HTML", [head("text/html"), b"<html>Welcome to nginx!</html>", CLOSE]),
    ("nonsense", [head(), b"data: [1, 2\n\n", CLOSE]),
    ("no line end", [head(), lambda: b"x" * 65_536]),
]


@pytest.mark.parametrize("script", [script for _, script in FAILING], ids=[name for name, _ in FAILING])
async def test_a_backend_that_fails_costs_no_request_and_is_left_out_soon(tmp_path: Path, script: list[Step]) -> None:
    """Though it lies: each look at it is answered with 200."""
    model = WordModel(words=WORDS)
    names = [f"request-{index}" for index in range(30)]
    async with (
        scripted_server(*script) as bad,
        speaking(model),
        open_gateway(tmp_path, openai_backend(bad.url), others={"good": openai_backend(model.url)}) as (app, books),
    ):
        for name in names:
            [answer] = await answers(app, [name])
            check(answer, model, books, name)
        attempts = [books.attempts(name) for name in names]
    assert len(bad.received) == FAILURES_MAX
    assert attempts.count(["only", "good"]) == FAILURES_MAX
    assert all(tried in (["only", "good"], ["good"]) for tried in attempts)


@pytest.mark.parametrize(
    "script",
    [
        [HANG],
        [head(), HANG],
        [Drip(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 60_000, 0.02)],
        [head(), Drip(b"data: " + b"x" * 60_000, 0.02)],
        [head(), Drip(b": keep-alive\n\n", 0.02)],
    ],
    ids=["silent", "silent after its head", "slow head", "slow body", "keep-alives only"],
)
async def test_a_backend_that_hangs_holds_up_no_request_but_those_it_was_given(
    tmp_path: Path, script: list[Step]
) -> None:
    """A request that it was given is served by another after ``first_token_seconds_max``."""
    model = WordModel(words=WORDS)
    async with (
        scripted_server(*script) as bad,
        speaking(model),
        open_gateway(tmp_path, openai_backend(bad.url), others={"good": openai_backend(model.url)}, limits=LIMITS) as (
            app,
            books,
        ),
    ):
        stuck, number = [], 0
        while not bad.received:
            stuck.append(app.stream(inference(f"stuck-{number}")))
            number += 1
            await asyncio.wait([asyncio.ensure_future(bad.is_reached.wait())], timeout=0.2)
        began = time.monotonic()
        served = []
        for index in range(10):
            served += await answers(app, [f"later-{index}"])
        seconds = time.monotonic() - began
        for index, answer in enumerate(served):
            check(answer, model, books, f"later-{index}")
            assert books.attempts(f"later-{index}") == ["good"]
        assert len(bad.received) == 1
        for index, stream in enumerate(stuck):
            check(await stream.ended(), model, books, f"stuck-{index}")
        given = [books.attempts(f"stuck-{index}") for index in range(number)]
    assert given.count(["only", "good"]) == 1
    assert seconds < 10 * PATIENCE_SECONDS


async def test_a_slow_backend_is_given_less_than_a_fast_one(tmp_path: Path) -> None:
    slow, fast = WordModel(words=WORDS, interval_seconds=0.05), WordModel(words=WORDS)
    async with (
        speaking(slow),
        speaking(fast),
        open_gateway(tmp_path, openai_backend(slow.url), others={"fast": openai_backend(fast.url)}) as (app, books),
    ):

        async def worker(number: int) -> None:
            for index in range(10):
                name = f"request-{number}-{index}"
                check(await app.stream(inference(name)).ended(), fast, books, name)

        await asyncio.gather(*(worker(number) for number in range(4)))
    assert slow.requests + fast.requests == 40
    assert 3 * fast.requests > 5 * slow.requests


async def test_a_backend_that_flaps_costs_no_request(tmp_path: Path) -> None:
    flapping, steady = WordModel(words=WORDS), WordModel(words=WORDS)
    names = [f"request-{index}" for index in range(40)]
    async with (
        speaking(flapping),
        speaking(steady),
        open_gateway(tmp_path, openai_backend(flapping.url), others={"good": openai_backend(steady.url)}) as (
            app,
            books,
        ),
    ):
        for index, name in enumerate(names):
            flapping.break_after = 0 if index % 3 else None
            [answer] = await answers(app, [name])
            check(answer, steady, books, name)


async def test_a_backend_that_breaks_off_after_the_first_token_is_not_replaced_in_the_middle(tmp_path: Path) -> None:
    """What was delivered is charged once, and another backend is not asked for the rest."""
    breaking, good = WordModel(words=WORDS, break_after=4), WordModel(words=WORDS)
    async with (
        speaking(breaking),
        speaking(good),
        open_gateway(
            tmp_path,
            openai_backend(breaking.url),
            others={"good": openai_backend(good.url)},
        ) as (app, books),
    ):
        seen = []
        for index in range(30):
            [answer] = await answers(app, [f"request-{index}"])
            seen.append(answer)
            if breaking.requests and answer.refusal is not None:
                break
        broken = seen[-1]
        assert broken.refused.reason == "BACKEND_UNAVAILABLE"
        assert cause(broken.receipted) == "BACKEND_ERROR"
        assert books.attempts(f"request-{len(seen) - 1}") == ["only"]
        assert breaking.text(4).startswith(broken.text)
        assert broken.receipted.charged_microcredits == cost(broken.admitted.prompt_tokens, broken.text)


TURNS_AWAY: list[Step] = [head("application/json", "503 Service Unavailable"), b"{}", CLOSE]


async def test_when_all_backends_are_out_the_app_is_told_how_long_and_none_is_called(tmp_path: Path) -> None:
    async with (
        scripted_server(*TURNS_AWAY) as one,
        scripted_server(*TURNS_AWAY) as two,
        open_gateway(tmp_path, openai_backend(one.url), others={"two": openai_backend(two.url)}) as (app, books),
    ):
        refusals = [(await answers(app, [f"request-{index}"]))[0].refused for index in range(FAILURES_MAX + 3)]
        called = [len(one.received), len(two.received)]
        assert books.charges() == {}
    assert {refusal.reason for refusal in refusals} == {"BACKEND_UNAVAILABLE"}
    assert called == [FAILURES_MAX, FAILURES_MAX]
    assert all(refusal.retry_seconds is not None and 1 <= refusal.retry_seconds <= 2 for refusal in refusals)
    assert float(refusals[-1].metadata["retry_seconds"]) > 0


async def test_requests_that_every_backend_fails_at_take_no_backend_from_the_others(tmp_path: Path) -> None:
    """One app's, at a pool of two and at the only one of them that is left."""
    models = [WordModel(words=WORDS, poison=b"PILL"), WordModel(words=WORDS, poison=b"PILL")]
    async with (
        speaking(models[0]),
        speaking(models[1]),
        open_gateway(tmp_path, openai_backend(models[0].url), others={"two": openai_backend(models[1].url)}) as (
            app,
            books,
        ),
    ):
        for phase in ("both", "alone"):
            poisoned = [app.stream(inference(f"{phase}-pill-{index}", "PILL")) for index in range(4 * FAILURES_MAX)]
            refusals = {(await stream.ended()).refused.reason for stream in poisoned}
            assert refusals == {"BACKEND_UNAVAILABLE"}
            names = [f"{phase}-sound-{index}" for index in range(4)]
            for answer, name in zip(await answers(app, names), names, strict=True):
                check(answer, models[0], books, name)
                assert len(books.attempts(name)) == 1 or phase == "alone"
            models[1].kill()


async def test_requests_beyond_a_backends_limit_wait_in_line_and_beyond_the_line_are_refused(tmp_path: Path) -> None:
    model = WordModel(words=WORDS, hold_after=2)
    line = "requests_max = 2\nqueue_max = 1\nqueue_seconds_max = 60.0"
    async with speaking(model), open_gateway(tmp_path, f"{openai_backend(model.url)}\n{line}") as (app, books):
        running = [app.stream(inference(f"running-{index}")) for index in range(2)]
        for stream in running:
            await stream.until_characters(len(model.text(2)))
        beyond = [app.stream(inference(f"beyond-{index}")) for index in range(2)]
        ended = [asyncio.ensure_future(stream.ended()) for stream in beyond]
        [first], _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        refused = first.result().refused
        assert refused.reason == "BACKEND_UNAVAILABLE"
        assert "as many requests as it may" in refused.metadata["problem"]
        assert model.requests == 2
        model.go_on.set()
        for stream in running:
            await stream.ended()
        waited = await next(task for task in ended if task is not first)
        assert waited.text == model.text(WORDS)
        assert len(books.charges()) == 3


async def test_a_backend_that_is_killed_mid_stream_and_comes_back_serves_again(
    tmp_path: Path, backend_port: int
) -> None:
    """Alone in its pool: one break does not leave it out."""
    before = WordModel(words=WORDS, hold_after=4)
    async with (
        speaking(before, backend_port) as model,
        open_gateway(tmp_path, openai_backend(model.url)) as (app, books),
    ):
        running = app.stream(inference("running"))
        await running.until_characters(len(model.text(4)))
        model.kill()
        broken = await running.ended()
        assert broken.refused.reason == "BACKEND_UNAVAILABLE"
        assert broken.receipted.charged_microcredits == cost(broken.admitted.prompt_tokens, broken.text)
        [refused] = await answers(app, ["while it is away"])
        assert refused.refused.reason == "BACKEND_UNAVAILABLE"
        async with speaking(WordModel(words=WORDS), backend_port) as after:
            [answer] = await answers(app, ["again"])
            check(answer, after, books, "again")

"""L1 on the wire: at every instant, what has arrived at the app costs no more than what is durably captured.

An outside writer takes SQLite's write lock, so that captures freeze while the model goes on speaking: then the text
must stop arriving. The negative control shows that a gateway which delivers first is found out.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from app_client import Answer, App, inference
from gateway_process import Books, GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from open_gateway import open_gateway
from word_model import WordModel, speaking

from metergate.app import Gateway
from metergate.config import load_config
from metergate.core.inference import Delta
from metergate.metering import use_case
from metergate.metering.buffer import End
from metergate.metering.streamed_run import StreamedRun

FREEZES = 5

# The model says so many words during one freeze: at 3 ms each, far less than the store's busy timeout of 2 s.
WORDS_FROZEN = 60
INTERVAL_SECONDS = 0.003


@asynccontextmanager
async def frozen(store: Path) -> AsyncIterator[None]:
    """Hold the write lock of the store: no capture can commit."""
    connection = sqlite3.connect(store, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
    finally:
        connection.close()


class Unpaid(AssertionError):
    """Text has arrived that is not captured."""


def check_paid(books: Books, answer: Answer) -> None:
    """Unpaid if what has arrived costs more than what is captured."""
    arrived_microcredits = cost(answer.admitted.prompt_tokens, answer.text)
    captured_microcredits = books.captured_microcredits(answer.admitted.reservation)
    if arrived_microcredits > captured_microcredits:
        raise Unpaid(f"{arrived_microcredits} microcredits arrived, {captured_microcredits} are captured")


async def freeze_again_and_again(books: Books, model: WordModel, answer: Answer) -> None:
    for _ in range(FREEZES):
        async with frozen(books.store):
            check_paid(books, answer)
            await model.until_sent(model.sent + WORDS_FROZEN // 2)
            # Whatever had been captured before the freeze has arrived by now.
            arrived = answer.text
            await model.until_sent(model.sent + WORDS_FROZEN // 2)
            check_paid(books, answer)
            assert answer.text == arrived, "text arrives while nothing can be captured"
        await answer.until_characters(len(arrived) + 20)
        check_paid(books, answer)


async def test_while_captures_are_frozen_no_text_arrives_and_all_that_arrived_is_paid(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=None, interval_seconds=INTERVAL_SECONDS)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = app.stream(inference("frozen", max_completion_tokens=1_800))
                await answer.until_characters(20)
                await freeze_again_and_again(gateway.books, model, answer)
                answer.call.cancel()
                await answer.ended()
                assert model.text(5_000).startswith(answer.text)
        verify(tmp_path)


class DeliversFirst(StreamedRun):
    """A gateway with the defect that this file is about."""

    async def _handle(self, delta: Delta) -> End | None:
        await self._sink.deliver(delta)
        return await super()._handle(delta)

    async def _deliver(self, delta: Delta) -> None:
        return


class DeliversDuringTheCapture(StreamedRun):
    """The same defect, where delivery and capture race."""

    async def _handle(self, delta: Delta) -> End | None:
        _, end = await asyncio.gather(self._sink.deliver(delta), super()._handle(delta))
        return end

    async def _deliver(self, delta: Delta) -> None:
        return


@pytest.mark.parametrize("defect", [None, DeliversFirst, DeliversDuringTheCapture])
async def test_a_gateway_that_delivers_first_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: type[StreamedRun] | None
) -> None:
    if defect is not None:
        monkeypatch.setattr(use_case, "StreamedRun", defect)
    store = tmp_path / "ledger.db"
    keys = await open_wallets(store, {"alice": 10_000_000})
    async with speaking(WordModel(words=None, interval_seconds=INTERVAL_SECONDS)) as model:
        config = load_config(write_config(tmp_path, openai_backend(model.url)))
        async with await Gateway.open(config) as gateway, App(gateway.port, keys["alice"]) as app:
            answer = app.stream(inference("frozen", max_completion_tokens=1_800))
            await answer.until_characters(20)
            if defect is None:
                await freeze_again_and_again(Books(store), model, answer)
            else:
                with pytest.raises(Unpaid):
                    await freeze_again_and_again(Books(store), model, answer)
            answer.call.cancel()
            await answer.ended()
            await gateway.drain()


async def test_a_cancel_while_a_capture_is_in_flight_is_charged_only_what_was_delivered(tmp_path: Path) -> None:
    model = WordModel(words=None, interval_seconds=INTERVAL_SECONDS)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        answer = app.stream(inference("in-flight", max_completion_tokens=1_800))
        await answer.until_characters(20)
        async with frozen(books.store):
            await model.until_sent(model.sent + WORDS_FROZEN)
            arrived = answer.text
            answer.call.cancel()
            await answer.ended()
            async with asyncio.timeout(10):
                await model.left.wait()
        async with asyncio.timeout(10):
            # Nothing tells an app that went away.
            while books.open_reservations():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert books.charges()["in-flight"] == (cost(answer.admitted.prompt_tokens, arrived), "CLIENT_CANCELLED")


async def test_a_whole_answer_is_not_delivered_before_its_charge_is_stored(tmp_path: Path) -> None:
    model = WordModel(words=20, hold_after=10)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        asking = asyncio.create_task(app.complete(inference("whole")))
        await model.until_sent(10)
        async with frozen(books.store):
            model.go_on.set()
            await model.until_sent(20)
            # Ten times what an answer that waits for nothing takes.
            done, _ = await asyncio.wait([asking], timeout=0.3)
            assert not done, "the answer came while its charge could not be stored"
            assert books.charges() == {}
        response = await asking
        assert books.charges()["whole"] == (response.receipt.charged_microcredits, "FINISHED")

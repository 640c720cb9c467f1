"""The store goes away under a running stream: nothing more is delivered, and when it is back, so is the gateway."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from app_client import Answer, inference
from charged import check_charged
from gateway_process import Books, openai_backend
from open_gateway import open_gateway
from word_model import WordModel, speaking

Trouble = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Another program holds the file, for longer than the gateway waits."""
    connection = sqlite3.connect(store, timeout=10, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def away(store: Path) -> Iterator[None]:
    """The file is not where it was."""
    elsewhere = store.with_suffix(".elsewhere")
    store.rename(elsewhere)
    try:
        yield
        assert not store.exists(), "a new store was made in the place of the one that went away"
    finally:
        elsewhere.rename(store)


@pytest.mark.parametrize("trouble", [locked, away])
async def test_a_stream_whose_store_fails_ends_paid_and_is_served_again(tmp_path: Path, trouble: Trouble) -> None:
    model = WordModel(words=None, interval_seconds=0.005)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        answer = app.stream(inference("first", max_completion_tokens=1_800))
        await answer.until_characters(20)
        with trouble(books.store):
            await answer.ended()
            assert answer.refused.reason == "STORE_UNAVAILABLE"
            assert answer.receipt is None, "a receipt was sent for a settlement that was not stored"
            refused = (await app.stream(inference("during")).ended()).refused
            assert refused.reason == "STORE_UNAVAILABLE"
        again = await app.until_served(inference("after", max_completion_tokens=20))
        assert again.text
        check_settled(books, answer)


def check_settled(books: Books, answer: Answer) -> None:
    check_charged(books, {"first": answer})
    _, close_cause = books.charges()["first"]
    assert close_cause in ("CRASH", "STORE_ERROR")

"""A gateway on a slow, failing or full disk: no text before its debit is durable, and it comes back by itself."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from app_client import Answer, App, inference
from charged import check_charged
from durability.disk import IO_ERROR_WRITE, OK, CannotWatch, Disk, Kind, no_fault, watched
from gateway_process import GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from open_gateway import open_gateway
from word_model import WordModel, speaking

# Room for the ledger, its WAL, some dozen commits, and the ballast that is thrown out.
DISK_KIBIBYTES = 1_000
BALLAST_BYTES = 300 * 1024

AT_ONCE = 6

# How long a commit is held: beyond every wait of the gateway for others of its kind.
COMMIT_SECONDS = 2.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Below the gateway's store, which lies in ``tmp_path``."""
    try:
        with watched(tmp_path) as below:
            yield below
    except CannotWatch:
        pytest.skip("this Python's sqlite3 has SQLite linked in: its files cannot be watched from outside")


async def test_while_commits_take_seconds_nothing_is_delivered_and_then_the_stream_goes_on(
    tmp_path: Path, disk: Disk
) -> None:
    model = WordModel(words=60, interval_seconds=0.002)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        answer = app.stream(inference("slow"))
        await answer.until_characters(20)
        begun, go_on = threading.Event(), threading.Event()

        def hold(kind: Kind, name: str) -> int:
            if kind is Kind.SYNC and name.endswith("-wal"):
                begun.set()
                go_on.wait(20)
            return OK

        disk.fault = hold
        try:
            assert await asyncio.to_thread(begun.wait, 20)
            await model.until_sent(60)
            await asyncio.sleep(COMMIT_SECONDS)
            durable_microcredits = books.captured_microcredits(answer.admitted.reservation)
            assert cost(answer.admitted.prompt_tokens, answer.text) <= durable_microcredits
            assert len(answer.text) < len(model.text(60)), "all was delivered before the commit was held"
        finally:
            disk.fault = no_fault
            go_on.set()
        await answer.ended()
        assert answer.text == model.text(60)
        assert answer.receipt is not None


async def test_a_disk_that_cannot_be_written_ends_streams_and_the_same_gateway_serves_again(
    tmp_path: Path, disk: Disk
) -> None:
    model = WordModel(words=None, interval_seconds=0.005)
    async with speaking(model), open_gateway(tmp_path, openai_backend(model.url)) as (app, books):
        answer = app.stream(inference("first", max_completion_tokens=1_800))
        await answer.until_characters(20)
        disk.fault = lambda kind, _: IO_ERROR_WRITE if kind is Kind.WRITE else OK
        await answer.ended()
        assert answer.refused.reason == "STORE_UNAVAILABLE"
        assert answer.receipt is None
        disk.fault = no_fault
        again = await app.until_served(inference("after", max_completion_tokens=20))
        assert again.text
        check_charged(books, {"first": answer})


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of a size that fills up."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_KIBIBYTES}k"]
    mounted = subprocess.run(["mount", *options, "none", folder], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"only root can mount a small disk (the same is tried with a limit on files): {mounted.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def until_the_disk_is_full(app: App) -> dict[str, Answer]:
    """Answers by their requests' ids, some at once, until the store ended one of them."""
    answers: dict[str, Answer] = {}
    while all(answer.refusal is None for answer in answers.values()):
        assert len(answers) < 300, "the disk never became full"
        request_ids = [f"full-{len(answers) + place}" for place in range(AT_ONCE)]
        begun = {request_id: app.stream(inference(request_id)) for request_id in request_ids}
        answers |= {request_id: await answer.ended() for request_id, answer in begun.items()}
    return answers


async def test_a_small_disk_fills_up_and_when_there_is_room_the_same_gateway_serves_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as folder:
        keys = await open_wallets(folder / "ledger.db", {"alice": 10_000_000})
        ballast = folder / "ballast"
        await asyncio.to_thread(ballast.write_bytes, bytes(BALLAST_BYTES))
        async with speaking(WordModel(words=80, interval_seconds=0.001)) as model:
            write_config(folder, openai_backend(model.url))
            with GatewayProcess(folder) as gateway:
                async with App(gateway.port, keys["alice"]) as app:
                    answers = await until_the_disk_is_full(app)
                    reasons = {answer.refusal.reason for answer in answers.values() if answer.refusal is not None}
                    assert reasons == {"STORE_UNAVAILABLE"}
                    ballast.unlink()
                    again = await app.until_served(inference("after", max_completion_tokens=20))
                check_charged(gateway.books, answers)
                assert again.text
            assert gateway.books.open_reservations() == 0
            verify(folder)

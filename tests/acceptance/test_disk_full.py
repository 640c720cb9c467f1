"""A full disk: no text is delivered that could not be debited, the books stay right, and the gateway comes back."""

import asyncio
import resource
from pathlib import Path

import grpc
from app_client import Answer, App, inference
from charged import check_charged
from gateway_process import GatewayProcess, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

# No file of the gateway may grow beyond this: the disk is full. The log of SQLite meets it after some hundred captures.
FILE_BYTES_MAX = 600_000

REQUESTS_MAX = 200


def limit_files(pid: int, file_bytes_max: int) -> None:
    """Let no file of a running process grow beyond this. A soft limit: it can be lifted again."""
    _, hard_limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (file_bytes_max, hard_limit))


async def until_the_disk_is_full(app: App) -> dict[str, Answer]:
    """Answers by their requests' ids, until the first that the store ended, that one included."""
    answers: dict[str, Answer] = {}
    for request_id in (f"full-{number}" for number in range(REQUESTS_MAX)):
        answer = await app.stream(inference(request_id)).ended()
        answers[request_id] = answer
        if answer.refusal is not None:
            return answers
    raise AssertionError("the disk never became full")


async def test_a_full_disk_ends_streams_and_a_restart_with_room_settles_them_and_serves_again(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=80, interval_seconds=0.001)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            limit_files(gateway.process.pid, FILE_BYTES_MAX)
            async with App(gateway.port, keys["alice"]) as app:
                answers = await until_the_disk_is_full(app)
                *_, last = answers.values()
                refused = last.refused
                assert refused.code is grpc.StatusCode.UNAVAILABLE
                assert refused.reason == "STORE_UNAVAILABLE"
                assert refused.retry_seconds is not None
            await asyncio.to_thread(gateway.kill)
        verify(tmp_path)
        with GatewayProcess(tmp_path) as gateway:
            check_charged(gateway.books, answers)
            assert gateway.books.open_reservations() == 0
            async with App(gateway.port, keys["alice"]) as app:
                again = await app.stream(inference("after")).ended()
            assert again.text == model.text(80)
            assert again.receipt is not None
        verify(tmp_path)


async def test_when_the_disk_has_room_again_the_same_process_serves_again(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=80, interval_seconds=0.001)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            limit_files(gateway.process.pid, FILE_BYTES_MAX)
            async with App(gateway.port, keys["alice"]) as app:
                answers = await until_the_disk_is_full(app)
                limit_files(gateway.process.pid, resource.RLIM_INFINITY)
                again = await app.until_served(inference("after"))
            check_charged(gateway.books, answers)
            assert again.text == model.text(80)
        assert gateway.books.open_reservations() == 0
        verify(tmp_path)

"""The kernel refuses a running gateway's writes: it fails closed, and comes back, by itself where it can (L8).

A mount with files open for writing cannot be made read-only by hand (EBUSY). The kernel does it after an error of the
medium, for good; that is tried here, and files that may not be written for a while.
"""

import asyncio

import pytest
from app_client import Answer, App, inference
from charged import check_charged
from durability.mounts import ext4_disk, unchangeable
from durability.workplace import fast_folder
from gateway_process import GatewayProcess, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

COMPLETION_TOKENS_MAX = 1_800

# Three processes start, one after the other, on a machine that is busy with other tests.
pytestmark = pytest.mark.timeout(120)


async def check_closed(app: App, running: Answer) -> None:
    """The stream that runs ends without a receipt, and no other begins."""
    await running.ended()
    assert running.refused.reason == "STORE_UNAVAILABLE"
    assert running.receipt is None
    for number in range(3):
        another = await app.stream(inference(f"while-read-only-{number}")).ended()
        assert another.refused.reason == "STORE_UNAVAILABLE"
        assert (another.text, another.admission) == ("", None)


async def test_a_disk_that_the_kernel_made_read_only_is_served_from_again_after_its_repair() -> None:
    with fast_folder() as folder, ext4_disk(folder) as disk:
        keys = await open_wallets(disk.folder / "ledger.db", {"alice": 10_000_000})
        async with speaking(WordModel(words=None, interval_seconds=0.005)) as model:
            write_config(disk.folder, openai_backend(model.url))
            with GatewayProcess(disk.folder) as gateway:
                async with App(gateway.port, keys["alice"]) as app:
                    running = app.stream(inference("first", max_completion_tokens=COMPLETION_TOKENS_MAX))
                    await running.until_characters(20)
                    disk.turn_read_only()
                    await check_closed(app, running)
            await asyncio.to_thread(disk.repair)
            write_config(disk.folder, openai_backend(model.url))  # unlike the ledger, it was never synced
            with GatewayProcess(disk.folder) as gateway:
                assert gateway.books.open_reservations() == 0
                check_charged(gateway.books, {"first": running})
                async with App(gateway.port, keys["alice"]) as app:
                    assert (await app.until_served(inference("after", max_completion_tokens=20))).text
        verify(disk.folder)


async def test_a_ledger_that_may_not_be_written_for_a_while_is_served_by_the_same_gateway_again() -> None:
    with fast_folder() as folder, ext4_disk(folder) as disk:
        ledger = disk.folder / "ledger.db"
        keys = await open_wallets(ledger, {"alice": 10_000_000})
        async with speaking(WordModel(words=None, interval_seconds=0.005)) as model:
            write_config(disk.folder, openai_backend(model.url))
            with GatewayProcess(disk.folder) as gateway:
                async with App(gateway.port, keys["alice"]) as app:
                    running = app.stream(inference("first", max_completion_tokens=COMPLETION_TOKENS_MAX))
                    await running.until_characters(20)
                    with unchangeable(ledger, ledger.with_name("ledger.db-wal")):
                        await check_closed(app, running)
                    assert (await app.until_served(inference("after", max_completion_tokens=20))).text
                    check_charged(gateway.books, {"first": running})
            verify(disk.folder)

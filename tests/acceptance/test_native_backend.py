"""The gRPC path: app, gateway, the reference BackendService, the real model: all of them processes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from app_client import App, cause, finish, inference, tokens
from gateway_process import GatewayProcess, cost, open_wallets, verify, write_config
from native_backend import backend_server


async def test_a_native_backends_answer_is_counted_charged_and_stopped_by_a_cancel(
    tmp_path: Path, llama_server: str, busy_slots: Callable[[], int]
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    with backend_server(llama_server) as address:
        write_config(tmp_path, f'kind = "grpc"\naddress = "{address}"')
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = await app.stream(inference("native", "请介绍一下大海。", max_completion_tokens=24)).ended()
                receipt = answer.receipted
                counted, reported = tokens(receipt.usage_counted), tokens(receipt.usage_reported)
                assert cause(receipt) == "FINISHED"
                # Without text: an end-of-turn token; or, cut by max_completion_tokens, a character's first three bytes.
                textless_max = 3 if finish(receipt) == "LENGTH" else 1
                assert 0 <= reported["COMPLETION"] - counted["COMPLETION"] <= textless_max
                assert receipt.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)

                cancelled = app.stream(inference("stopped", "Tell me a long story.", max_completion_tokens=1_500))
                await cancelled.until_characters(20)
                assert await asyncio.to_thread(busy_slots) == 1
                cancelled.call.cancel()
                async with asyncio.timeout(10):
                    # The model server says nothing of its own accord.
                    while await asyncio.to_thread(busy_slots):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            await asyncio.to_thread(gateway.stop)
            charged_microcredits, close_cause = gateway.books.charges()["stopped"]
            assert close_cause == "CLIENT_CANCELLED"
            assert charged_microcredits >= cost(cancelled.admitted.prompt_tokens, cancelled.text)
        verify(tmp_path)

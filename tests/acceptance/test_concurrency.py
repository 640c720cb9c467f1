"""Many requests of one wallet at once: each is charged its own cost, and the wallet is never overdrawn."""

import asyncio
from pathlib import Path

import grpc
from app_client import PROMPT, App, inference, tokens
from gateway_process import GatewayProcess, cost, count_prompt, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

AT_ONCE = 8


async def test_streams_and_whole_answers_at_once_are_each_charged_their_own_cost(tmp_path: Path) -> None:
    wallet_microcredits = 1_000_000
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": wallet_microcredits})
    async with speaking(WordModel(words=60, interval_seconds=0.002)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                streams = [app.stream(inference(f"stream-{number}")) for number in range(AT_ONCE)]
                wholes = await asyncio.gather(
                    *(app.complete(inference(f"whole-{number}")) for number in range(AT_ONCE))
                )
                answers = [await stream.ended() for stream in streams]
                last = await app.complete(inference("last"))
            charges = gateway.books.charges()
        verify(tmp_path)
    text = model.text(60)
    expected_microcredits = cost(answers[0].admitted.prompt_tokens, text)
    assert [answer.text for answer in answers] == [text] * AT_ONCE
    assert [whole.message.content_parts[0].text for whole in wholes] == [text] * AT_ONCE
    assert {microcredits for microcredits, _ in charges.values()} == {expected_microcredits}
    assert len(charges) == 2 * AT_ONCE + 1
    assert last.receipt.available_microcredits == wallet_microcredits - len(charges) * expected_microcredits


async def test_a_wallet_of_so_many_requests_pays_exactly_so_many(tmp_path: Path) -> None:
    model = WordModel(words=10, said=(" the",))
    each = cost(count_prompt(PROMPT), model.text(10))
    paid, asked = 5, 12
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": paid * each})
    async with speaking(model):
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                outcomes = await asyncio.gather(*(_try(app, f"request-{number}") for number in range(asked)))
            charges = gateway.books.charges()
        verify(tmp_path)
    assert sum(outcomes) == paid
    assert [microcredits for microcredits, _ in charges.values()] == [each] * paid


async def _try(app: App, request_id: str) -> bool:
    try:
        response = await app.complete(inference(request_id, max_completion_tokens=10))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return False
        raise
    assert tokens(response.receipt.usage_counted)["COMPLETION"] == 10
    return True

"""Two gateways, each with a ledger of its own, before one backend: neither's wallets pay for the other's requests."""

import asyncio
from pathlib import Path

import grpc
from app_client import PROMPT, App, inference
from gateway_process import cost, count_prompt, openai_backend
from open_gateway import open_gateway
from word_model import WordModel, speaking

PAID, ASKED = (7, 12), 20


async def is_served(app: App, request_id: str) -> bool:
    """Half of them streams; False if the wallet is empty."""
    asked = inference(request_id, max_completion_tokens=10)
    if request_id.endswith(("0", "2", "4", "6", "8")):
        answer = await app.stream(asked).ended()
        assert answer.refusal is None or answer.refusal.reason == "INSUFFICIENT_CREDIT"
        return answer.refusal is None
    try:
        await app.complete(asked)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return False
        raise
    return True


async def test_each_wallet_pays_for_its_own_requests_though_ids_and_backend_are_shared(tmp_path: Path) -> None:
    model = WordModel(words=10, said=(" the",))
    each = cost(count_prompt(PROMPT), model.text(10))
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    async with (
        speaking(model),
        open_gateway(folders[0], openai_backend(model.url), microcredits=PAID[0] * each) as (one, books_of_one),
        open_gateway(folders[1], openai_backend(model.url), microcredits=PAID[1] * each) as (other, books_of_other),
    ):
        asking = [is_served(app, f"request-{number}") for number in range(ASKED) for app in (one, other)]
        outcomes = await asyncio.gather(*asking)
        assert (sum(outcomes[::2]), sum(outcomes[1::2])) == PAID
        for books, paid in ((books_of_one, PAID[0]), (books_of_other, PAID[1])):
            assert [charged for charged, _ in books.charges().values()] == [each] * paid
    assert model.requests == sum(PAID), "a request that nobody pays for reached the backend"

"""The main job, end to end: a real model's answers, counted, debited and charged, by real processes."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from app_client import App, cause, finish, inference, tokens
from edge_harness import refused
from gateway_process import CARD, GatewayProcess, command_here, cost, metergate, openai_backend, smollm2, write_config
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from metergate.core.rating import rate_ceil
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import account_pb2, chat_pb2, inference_pb2

PROMPTS = {
    "english": "In two sentences: why does a carrier sell prepaid credits?",
    "chinese": "请用两句话介绍一下大海。",
    "code": "Write a Python function that adds two numbers. 😀",
}


def command(folder: Path, *arguments: str) -> str:
    code, out, err = command_here(folder, *arguments)
    assert code == 0, err
    return out.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_server: str) -> Path:
    """Set up by hand, as an operator does it."""
    path = tmp_path_factory.mktemp("real")
    write_config(path, openai_backend(f"{llama_server}/v1"))
    command(path, "subscriber", "create", "alice")
    command(path, "grant", "add", "alice", "--credits", "5", "--expires-in", "31d")
    return path


@pytest.fixture(scope="module")
def own_key(folder: Path) -> str:
    return command(folder, "key", "issue", "alice")


@pytest.fixture(scope="module")
def app_key(folder: Path) -> str:
    return command(folder, "key", "issue", "alice", "--app", "notes", "--cap-credits", "2")


@pytest.fixture(scope="module")
def gateway(folder: Path, own_key: str, app_key: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(folder) as process:
        yield process
    verified = metergate(folder, "ledger", "verify")
    assert (verified.returncode, "No differences." in verified.stdout) == (0, True), verified.stderr


def charged_for(usage: dict[str, int]) -> int:
    """What a counted usage costs; the test's card prices a cached prompt as any prompt."""
    prompt = usage.get("PROMPT", 0) + usage.get("CACHED_PROMPT", 0)
    return rate_ceil(
        Usage.of({TokenClass.PROMPT: prompt, TokenClass.COMPLETION: usage["COMPLETION"]}),
        CARD,
    )


def prompt_tokens_of(usage: dict[str, int]) -> int:
    return usage.get("PROMPT", 0) + usage.get("CACHED_PROMPT", 0)


async def spendable(app: App) -> int:
    response = await app.account.GetWallet(account_pb2.GetWalletRequest(), metadata=app.metadata)
    return response.wallet.spendable_microcredits


# The likeliest token always, so that a run of the test is like the last.
GREEDY = chat_pb2.Sampling(temperature=0.0, seed=1)


def check_receipt(receipt: inference_pb2.Receipt, text: str, prompt_tokens: int) -> None:
    """The charge is the price of the counted usage, and the counts are those of the text and of the model."""
    counted, reported = tokens(receipt.usage_counted), tokens(receipt.usage_reported)
    assert prompt_tokens_of(counted) == prompt_tokens_of(reported) == prompt_tokens
    assert counted["COMPLETION"] == smollm2().count_text(text)
    undelivered = reported["COMPLETION"] - counted["COMPLETION"]
    if finish(receipt) == "STOP":
        # The model's own count has an end-of-turn token that is not in the text.
        assert undelivered == 1
    else:
        # Cut by max_completion_tokens within a character, whose first bytes, at most three tokens, are no text yet.
        assert 0 <= undelivered <= 3
    assert receipt.charged_microcredits == charged_for(counted) == cost(prompt_tokens, text)


@pytest.mark.parametrize("language", PROMPTS)
async def test_a_stream_and_a_whole_answer_are_counted_and_charged_exactly(
    gateway: GatewayProcess, app_key: str, language: str
) -> None:
    async with App(gateway.port, app_key) as app:
        before = await spendable(app)
        streamed = inference(f"stream-{language}", PROMPTS[language], max_completion_tokens=32, sampling=GREEDY)
        quote = await app.inference.CountTokens(
            inference_pb2.CountTokensRequest(
                model=streamed.model, messages=streamed.messages, max_completion_tokens=32
            ),
            metadata=app.metadata,
        )
        answer = await app.stream(streamed).ended()
        check_receipt(answer.receipted, answer.text, quote.prompt_tokens)
        assert answer.admitted.prompt_tokens == quote.prompt_tokens
        assert cause(answer.receipted) == "FINISHED"
        assert finish(answer.receipted) in ("STOP", "LENGTH")
        assert len(answer.deliveries) > 1
        assert answer.receipted.charged_microcredits <= quote.cost_microcredits_max
        after = await spendable(app)
        assert after == answer.receipted.available_microcredits == before - answer.receipted.charged_microcredits

        again = inference(f"whole-{language}", PROMPTS[language], max_completion_tokens=32, sampling=GREEDY)
        whole = await app.complete(again)
        text = "".join(part.text for part in whole.message.content_parts)
        check_receipt(whole.receipt, text, quote.prompt_tokens)
        assert await spendable(app) == after - whole.receipt.charged_microcredits


async def test_a_stop_text_that_the_real_server_found_and_reports_is_neither_charged_nor_a_mismatch(
    gateway: GatewayProcess, app_key: str
) -> None:
    asked = inference("stopped", "Repeat exactly: one, two, three, four, five, six", max_completion_tokens=40)
    asked.sampling.CopyFrom(chat_pb2.Sampling(temperature=0.0, seed=1, stop=[", three, four"]))
    async with App(gateway.port, app_key) as app:
        answer = await app.stream(asked).ended()
        receipt = answer.receipted
        got = await app.account.GetCharge(account_pb2.GetChargeRequest(name=receipt.charge), metadata=app.metadata)
    assert finish(receipt) == "STOP"
    counted, reported = tokens(receipt.usage_counted)["COMPLETION"], tokens(receipt.usage_reported)["COMPLETION"]
    assert counted == smollm2().count_text(answer.text)
    assert reported > counted + 1
    assert not got.charge.usage_mismatch


async def test_charges_and_transfers_are_what_the_receipt_said(
    gateway: GatewayProcess, app_key: str, own_key: str
) -> None:
    async with App(gateway.port, app_key) as app, App(gateway.port, own_key) as own:
        receipt = (await app.stream(inference("listed", "Hi", max_completion_tokens=8)).ended()).receipted
        got = await app.account.GetCharge(account_pb2.GetChargeRequest(name=receipt.charge), metadata=app.metadata)
        listed = await app.account.ListCharges(account_pb2.ListChargesRequest(page_size=1), metadata=app.metadata)
        assert listed.charges[0] == got.charge
        assert got.charge.request_id == "listed"
        assert got.charge.app == "apps/notes"
        assert got.charge.usage_counted == receipt.usage_counted
        assert got.charge.charged_microcredits == receipt.charged_microcredits
        assert not got.charge.usage_mismatch
        moved = await own.account.ListTransfers(account_pb2.ListTransfersRequest(page_size=1), metadata=own.metadata)
        assert moved.transfers[0].charge == receipt.charge
        assert moved.transfers[0].amount_microcredits == receipt.charged_microcredits
        foreign = await refused(app.account.ListTransfers(account_pb2.ListTransfersRequest(), metadata=app.metadata))
        assert foreign.reason == "SUBSCRIBER_KEY_REQUIRED"


async def test_a_cancelled_stream_stops_the_real_model_and_is_charged_what_arrived(
    gateway: GatewayProcess, app_key: str, busy_slots: Callable[[], int]
) -> None:
    async with App(gateway.port, app_key) as app:
        answer = app.stream(inference("real-cancel", "Tell me a very long story.", max_completion_tokens=1_500))
        await answer.until_characters(20)
        assert await asyncio.to_thread(busy_slots) == 1
        answer.call.cancel()
        async with asyncio.timeout(60):
            # The model server says nothing of its own accord.
            while await asyncio.to_thread(busy_slots):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            while "real-cancel" not in gateway.books.charges():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    charged_microcredits, close_cause = gateway.books.charges()["real-cancel"]
    assert close_cause == "CLIENT_CANCELLED"
    # gRPC may drop, in the app's own process, what arrived together with the cancel.
    assert charged_microcredits >= cost(answer.admitted.prompt_tokens, answer.text)


async def test_health_and_reflection_are_served_without_a_key(gateway: GatewayProcess, app_key: str) -> None:
    async with App(gateway.port, app_key) as app:
        health: Any = health_pb2_grpc.HealthStub(app.channel)
        for service in ("", "metergate.v1.InferenceService"):
            checked = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = cast(Any, reflection_pb2_grpc).ServerReflectionStub(app.channel)
        asked = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names: set[str] = set()
        async for response in asked:
            names |= {service.name for service in response.list_services_response.service}
        assert {f"metergate.v1.{name}Service" for name in ("Inference", "Account", "Catalog")} <= names

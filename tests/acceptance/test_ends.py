"""However a request ends, the app pays for exactly what arrived, the backend stops, and the books are clean."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from app_client import PROMPT, Answer, App, cause, finish, inference, tokens
from gateway_process import GatewayProcess, cost, count_prompt, open_wallets, openai_backend, verify, write_config
from ports import reserved_port
from word_model import WordModel, speaking

# Microcredits: for everything; for the prompt and some fifty tokens; for less than the prompt.
WALLETS = {"rich": 1_000_000_000, "poor": 500, "pauper": 40}


@pytest.fixture(scope="module")
def backend_port() -> Iterator[int]:
    """Each test's backend listens there."""
    with reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return asyncio.run(open_wallets(tmp_path_factory.getbasetemp() / "ends-ledger.db", WALLETS))


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str], backend_port: int
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("ends")
    (tmp_path_factory.getbasetemp() / "ends-ledger.db").rename(folder / "ledger.db")
    write_config(folder, openai_backend(f"http://127.0.0.1:{backend_port}/v1"))
    with GatewayProcess(folder) as process:
        yield process
    # Every test of this module left its part of these books.
    assert process.books.open_reservations() == 0
    verify(folder)


@asynccontextmanager
async def app_and_model(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int, subscriber_id: str, model: WordModel
) -> AsyncIterator[tuple[App, WordModel]]:
    async with speaking(model, backend_port), App(gateway.port, keys[subscriber_id]) as app:
        yield app, model


async def charge_of(gateway: GatewayProcess, request_id: str) -> tuple[int, str]:
    """The charge of a request that ends without telling its app, once it is settled."""
    async with asyncio.timeout(20):
        # Nothing tells an app that went away: its charge is looked for from outside.
        while request_id not in (charges := gateway.books.charges()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return charges[request_id]


async def test_an_answer_that_ends_by_itself_is_charged_exactly_what_arrived(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel()) as (app, model):
        answer = await app.stream(inference("plain")).ended()
    receipt = answer.receipted
    assert answer.text == model.text(40)
    assert (cause(receipt), finish(receipt)) == ("FINISHED", "STOP")
    assert receipt.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)


async def test_an_empty_wallet_ends_the_stream_well_formed_with_less_than_a_token_left(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "poor", WordModel(words=None)) as (app, model):
        answer = await app.stream(inference("poor-1")).ended()
        async with asyncio.timeout(20):
            await model.left.wait()
        receipt = answer.receipted
        assert answer.refusal is None
        assert (cause(receipt), finish(receipt)) == ("CREDIT_EXHAUSTED", "CREDIT_EXHAUSTED")
        assert receipt.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)
        assert receipt.available_microcredits == WALLETS["poor"] - receipt.charged_microcredits
        # One more of the cheapest tokens did not fit; a character of the model's words has up to three of them.
        assert 0 <= receipt.available_microcredits < 3 * 8
        assert answer.text
        assert model.text(2_000).startswith(answer.text)
        asked = model.requests
        refused = await app.stream(inference("poor-2")).ended()
        assert refused.admission is None
        assert refused.refused.reason == "INSUFFICIENT_CREDIT"
        assert model.requests == asked, "a backend was called for a request that cannot be paid"


async def test_a_wallet_that_cannot_pay_the_prompt_is_refused_and_keeps_its_credit(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "pauper", WordModel()) as (app, model):
        refusal = (await app.stream(inference("pauper-1")).ended()).refused
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.metadata["available_microcredits"] == "40"
        assert model.requests == 0


async def test_the_requests_own_limit_ends_the_stream_and_is_never_passed(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(words=None)) as (app, _):
        answer = await app.stream(inference("limited", credit_limit_microcredits=300)).ended()
    assert cause(answer.receipted) == "CREDIT_LIMIT_REACHED"
    assert 300 - 3 * 8 < answer.receipted.charged_microcredits <= 300
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)


async def test_a_model_that_never_ends_is_cut_at_max_completion_tokens(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(words=None)) as (app, model):
        answer = await app.stream(inference("endless", max_completion_tokens=50)).ended()
        async with asyncio.timeout(20):
            await model.left.wait()
    assert (cause(answer.receipted), finish(answer.receipted)) == ("FINISHED", "LENGTH")
    assert 47 < tokens(answer.receipted.usage_counted)["COMPLETION"] <= 50
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)


async def held(app: App, model: WordModel, request_id: str, *, deadline_seconds: float | None = None) -> Answer:
    """A stream whose model has said 30 words and says no more; all of them have arrived."""
    answer = app.stream(inference(request_id), deadline_seconds=deadline_seconds)
    await answer.until_characters(len(model.text(30)))
    return answer


async def test_a_cancel_is_charged_what_was_delivered_and_stops_the_backend(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(hold_after=30)) as (app, model):
        answer = await held(app, model, "cancelled")
        answer.call.cancel()
        assert await charge_of(gateway, "cancelled") == (
            cost(answer.admitted.prompt_tokens, answer.text),
            "CLIENT_CANCELLED",
        )
        async with asyncio.timeout(20):
            await model.left.wait()
        # Asked again, the app gets the receipt it never saw, and is not charged again.
        again = await app.stream(inference("cancelled")).ended()
        assert again.receipted.replayed
        assert again.text == answer.text
        assert model.requests == 1


async def test_a_cancel_before_the_first_token_is_charged_the_prompt(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(hold_after=0)) as (app, model):
        answer = app.stream(inference("early"))
        await answer.until(lambda: answer.admission is not None)
        await model.until_asked()
        answer.call.cancel()
        charge = await charge_of(gateway, "early")
        assert charge == (cost(answer.admitted.prompt_tokens, ""), "CLIENT_CANCELLED")
        async with asyncio.timeout(20):
            await model.left.wait()


async def test_a_deadline_is_charged_what_was_delivered_and_stops_the_backend(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(hold_after=30)) as (app, model):
        answer = await held(app, model, "late", deadline_seconds=1.0)
        await answer.ended()
        assert answer.refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await charge_of(gateway, "late") == (
            cost(answer.admitted.prompt_tokens, answer.text),
            "DEADLINE_EXCEEDED",
        )
        async with asyncio.timeout(20):
            await model.left.wait()


# An app as a process of its own: it prints each delivery, and never ends by itself.
APP_PROCESS = """
import sys
import grpc
from metergate.v1 import chat_pb2, inference_pb2, inference_pb2_grpc

port, key, text = sys.argv[1:]
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel("127.0.0.1:" + port))
part = chat_pb2.ContentPart(text=text)
inference = inference_pb2.Inference(
    request_id="killed", model="models/smollm2",
    messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[part])],
)
request = inference_pb2.StreamCompleteRequest(inference=inference)
for event in stub.StreamComplete(request, metadata=[("authorization", "Bearer " + key)]):
    sys.stdout.write(event.delta.content)
    sys.stdout.flush()
"""


async def test_an_app_whose_process_dies_is_charged_what_was_delivered(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with speaking(WordModel(hold_after=30), backend_port) as model:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", APP_PROCESS, str(gateway.port), keys["rich"], PROMPT, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            arrived = await asyncio.wait_for(process.stdout.readexactly(len(model.text(30).encode())), 20)
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        charged_microcredits, close_cause = await charge_of(gateway, "killed")
        assert (charged_microcredits, close_cause) == (cost(count_prompt(PROMPT), arrived.decode()), "CLIENT_CANCELLED")
        async with asyncio.timeout(20):
            await model.left.wait()


async def test_a_backend_that_breaks_off_is_charged_what_was_delivered_and_the_receipt_comes_first(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(break_after=30)) as (app, _):
        answer = await app.stream(inference("broken")).ended()
    assert answer.refused.code is grpc.StatusCode.UNAVAILABLE
    assert answer.refused.reason == "BACKEND_UNAVAILABLE"
    assert answer.refused.metadata["charge"] == answer.receipted.charge
    assert cause(answer.receipted) == "BACKEND_ERROR"
    assert answer.receipted.charged_microcredits == cost(answer.admitted.prompt_tokens, answer.text)


async def test_a_backend_that_fails_before_the_first_token_charges_nothing_and_the_id_may_run_again(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(break_after=0)) as (app, model):
        answer = await app.stream(inference("again")).ended()
        assert answer.refused.reason == "BACKEND_UNAVAILABLE"
        assert not answer.text
        assert "again" not in gateway.books.charges()
        model.break_after = None
        again = await app.stream(inference("again")).ended()
        assert again.text == model.text(40)
        assert not again.receipted.replayed


async def test_complete_charges_nothing_when_the_backend_breaks_off_in_the_middle(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(break_after=30)) as (app, model):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await app.complete(inference("whole"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "whole" not in gateway.books.charges()
        model.break_after = None
        response = await app.complete(inference("whole"))
    text = response.message.content_parts[0].text
    assert text == model.text(40)
    prompt_tokens = tokens(response.receipt.usage_counted)["PROMPT"]
    assert response.receipt.charged_microcredits == cost(prompt_tokens, text)


async def test_a_request_id_runs_once_at_a_time_and_never_with_other_content(
    gateway: GatewayProcess, keys: dict[str, str], backend_port: int
) -> None:
    async with app_and_model(gateway, keys, backend_port, "rich", WordModel(hold_after=30)) as (app, model):
        answer = await held(app, model, "twice")
        same = (await app.stream(inference("twice")).ended()).refused
        assert (same.code, same.reason) == (grpc.StatusCode.ABORTED, "REQUEST_IN_PROGRESS")
        other = (await app.stream(inference("twice", "Something else.")).ended()).refused
        assert (other.code, other.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_CONFLICT")
        model.go_on.set()
        first = (await answer.ended()).receipted
        replay = await app.stream(inference("twice")).ended()
        assert replay.receipted.replayed
        assert replay.text == answer.text
        assert replay.receipted.charged_microcredits == first.charged_microcredits
        assert replay.receipted.available_microcredits == first.available_microcredits
        other = (await app.stream(inference("twice", "Something else.")).ended()).refused
        assert other.reason == "REQUEST_ID_CONFLICT"
        assert model.requests == 1

"""Vectors of a real model, over both kinds of backend: counted as the model counts, charged before they leave."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from app_client import App, cause, tokens
from edge_harness import refused
from gateway_process import (
    CARD,
    GatewayProcess,
    open_wallets,
    openai_backend,
    smollm2,
    verify,
    write_embedding_config,
)
from native_backend import backend_server

from metergate.core.rating import rate_ceil
from metergate.core.usage import TokenClass, Usage
from metergate.v1 import account_pb2, inference_pb2

INPUTS = (
    "The road is long and winding.",
    "请用两句话介绍一下大海。",
    "def add(a, b):\n    return a + b  # 😀",
    "<|im_start|>user",
    " ",
    "e\u0301" * 20,
)
TOKENS = sum(smollm2().count_text(text) for text in INPUTS)
COST = rate_ceil(Usage.of({TokenClass.PROMPT: TOKENS}), CARD)


@contextmanager
def backend(kind: str, llama_url: str) -> Iterator[str]:
    """The table of a backend that makes vectors."""
    if kind == "openai":
        yield openai_backend(f"{llama_url}/v1")
    elif kind == "openai float":
        yield openai_backend(f"{llama_url}/v1") + '\nvector_encoding = "float"'
    else:
        with backend_server(llama_url, "--dimensions", "576") as address:
            yield f'kind = "grpc"\naddress = "{address}"'


def embed_request(*inputs: str, request_id: str = "e-1") -> inference_pb2.EmbedRequest:
    return inference_pb2.EmbedRequest(request_id=request_id, model="models/vectors", inputs=inputs)


async def embed(app: App, request: inference_pb2.EmbedRequest) -> inference_pb2.EmbedResponse:
    return await app.inference.Embed(request, metadata=app.metadata, timeout=20)


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


@pytest.mark.parametrize("kind", ["openai", "openai float", "grpc"])
async def test_a_real_models_vectors_are_counted_and_charged_exactly(
    tmp_path: Path, llama_embeddings: str, kind: str
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    with backend(kind, llama_embeddings) as table:
        write_embedding_config(tmp_path, table)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                quote = await app.inference.CountTokens(
                    inference_pb2.CountTokensRequest(model="models/vectors", inputs=INPUTS), metadata=app.metadata
                )
                assert (quote.prompt_tokens, quote.cost_microcredits_max) == (TOKENS, COST)
                response = await embed(app, embed_request(*INPUTS))
                receipt = response.receipt
                assert tokens(receipt.usage_counted) == tokens(receipt.usage_reported) == {"PROMPT": TOKENS}
                assert (receipt.charged_microcredits, cause(receipt)) == (COST, "FINISHED")
                vectors = [list(embedding.values) for embedding in response.embeddings]
                assert [len(vector) for vector in vectors] == [576] * len(INPUTS)

                # Each vector is its own text's, whatever else was asked with it.
                alone = await embed(app, embed_request(INPUTS[1], request_id="e-2"))
                assert cosine(list(alone.embeddings[0].values), vectors[1]) > 0.999
                assert cosine(vectors[0], vectors[1]) < 0.99

                replay = await embed(app, embed_request(*INPUTS))
                assert replay.receipt.replayed
                assert replay.receipt.charge == receipt.charge
                assert replay.embeddings == response.embeddings
                wallet = await app.account.GetWallet(account_pb2.GetWalletRequest(), metadata=app.metadata)
                spent = COST + alone.receipt.charged_microcredits
                assert wallet.wallet.spendable_microcredits == 10_000_000 - spent
        verify(tmp_path)


async def test_what_cannot_be_embedded_is_refused_by_name_and_costs_nothing(
    tmp_path: Path, llama_embeddings: str
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000, "bob": 1})
    write_embedding_config(tmp_path, openai_backend(f"{llama_embeddings}/v1"))
    with GatewayProcess(tmp_path) as gateway:
        async with App(gateway.port, keys["alice"]) as app:
            too_long = await refused(embed(app, embed_request("fine", "long " * 600)))
            assert (too_long.reason, list(too_long.violations)) == ("PROMPT_TOO_LONG", ["inputs[1]"])
            empty = await refused(embed(app, embed_request("fine", "")))
            assert list(empty.violations) == ["inputs[1]"]
            chosen = embed_request("fine")
            chosen.dimensions = 128
            assert list((await refused(embed(app, chosen))).violations) == ["dimensions"]
        async with App(gateway.port, keys["bob"]) as app:
            poor = await refused(embed(app, embed_request(*INPUTS)))
            assert (poor.code, poor.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_CREDIT")
        assert not gateway.books.charges()
        assert gateway.books.reservations() == 0
    verify(tmp_path)

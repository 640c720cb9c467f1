"""An app that does not read: what is read ahead for it is bounded, and it can hold up neither others nor a shutdown."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
from app_client import App, inference
from gateway_process import GatewayProcess, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

from metergate.v1 import inference_pb2, inference_pb2_grpc

# The app's own receive window is made as small as gRPC takes it, so that the gateway's write stalls early.
SMALL_WINDOW = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1_024),
]

# Long words of many tokens: the window is full long before the context is.
WORDS = ("the straight counterbalance " * 8,)

DELIVERY_CHARACTERS, READ_AHEAD_CHARACTERS = 1_024, 2_048


async def begun_but_not_read(channel: grpc.aio.Channel, app: App, request_id: str) -> Any:
    """A stream of which the app reads the admission and one delta, and nothing more."""
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.StreamComplete(
        inference_pb2.StreamCompleteRequest(inference=inference(request_id)), metadata=app.metadata
    )
    await call.read()
    await call.read()
    return call


async def test_an_app_that_does_not_read_holds_up_neither_others_nor_the_shutdown(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=None, said=WORDS)) as model:
        write_config(
            tmp_path,
            openai_backend(model.url),
            drain_seconds_max=0.3,
            delivery_characters_max=DELIVERY_CHARACTERS,
            read_ahead_characters_max=READ_AHEAD_CHARACTERS,
        )
        with GatewayProcess(tmp_path) as gateway:
            async with (
                grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=SMALL_WINDOW) as channel,
                App(gateway.port, keys["alice"]) as app,
            ):
                slow = await begun_but_not_read(channel, app, "slow")
                other = await app.stream(inference("other", max_completion_tokens=100)).ended()
                assert other.receipt is not None
                assert gateway.books.open_reservations() == 1, "the slow stream ended; the test proves nothing"
                told_at = time.monotonic()
                gateway.signal(signal.SIGTERM)
                code = await asyncio.to_thread(gateway.wait)
                assert code == 0, gateway.log()
                # The drain's time, a stalled write's two seconds, the last words' two seconds, and some of ours.
                assert time.monotonic() - told_at < 8
                slow.cancel()
        charged_microcredits, close_cause = gateway.books.charges()["slow"]
        assert close_cause == "DRAINED"
        assert charged_microcredits > 0
        assert gateway.books.open_reservations() == 0
        verify(tmp_path)

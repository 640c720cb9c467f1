"""A whole gateway over TLS: certificates are renewed under a running stream, which goes on and is charged as ever."""

from pathlib import Path

import grpc
from app_client import Answer, inference
from certificates import Authority
from edge_harness import bearer
from gateway_process import open_wallets, openai_backend, write_config
from word_model import WordModel, speaking

from metergate.app import Gateway
from metergate.config import load_config
from metergate.v1 import inference_pb2, inference_pb2_grpc


def channel(port: int, authority: Authority) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(authority.pem)
    return grpc.aio.secure_channel(f"localhost:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def stream(open_channel: grpc.aio.Channel, key: str, request_id: str) -> Answer:
    stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(open_channel)
    request = inference_pb2.StreamCompleteRequest(inference=inference(request_id, max_completion_tokens=1_000))
    return Answer(stub.StreamComplete(request, metadata=bearer(key))).begin()


async def test_certificates_are_renewed_under_a_running_stream(tmp_path: Path) -> None:
    old, renewed = Authority("old"), Authority("renewed")
    old.issue().write(tmp_path)
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=60, interval_seconds=0.02)) as model:
        path = write_config(tmp_path, openai_backend(model.url))
        tls = 'tls = { certificate_path = "tls.crt", key_path = "tls.key" }'
        path.write_text(path.read_text().replace("[listener]", f"[listener]\n{tls}", 1))
        async with await Gateway.open(load_config(path)) as gateway:
            async with channel(gateway.port, old) as before:
                running = stream(before, keys["alice"], "first")
                await running.until_characters(20)
                renewed.issue().write(tmp_path)
                async with channel(gateway.port, renewed) as after:
                    second = await stream(after, keys["alice"], "second").ended()
                await running.ended()
            assert running.text == second.text
            assert running.receipted.charged_microcredits == second.receipted.charged_microcredits > 0
            async with channel(gateway.port, old) as late:
                third = await stream(late, keys["alice"], "third").ended()
            assert third.refused.code is grpc.StatusCode.UNAVAILABLE
            await gateway.drain()

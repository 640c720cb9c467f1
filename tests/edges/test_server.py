import asyncio
import socket
from typing import Any, cast

import grpc
import pytest
from edge_harness import APP_KEY, Clockwork, Edge, bearer, key_of, refused, running_edge
from fakes import FakeClock, MemoryLedgerStore
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from metergate.core.errors import ListenerRefused
from metergate.edges.auth import Authenticator
from metergate.edges.server import ServerLimits, start_server
from metergate.v1 import account_pb2, chat_pb2, inference_pb2

SERVICES = ["metergate.v1.AccountService", "metergate.v1.CatalogService", "metergate.v1.InferenceService"]


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_is_serving_until_the_server_drains(edge: Edge, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(edge.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    await edge.handle.health.enter_graceful_shutdown()
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_every_service(edge: Edge) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, edge.channel))
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await call.read()
    await call.done_writing()
    names = {service.name for service in response.list_services_response.service}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_an_address_in_use_is_refused_with_its_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenerRefused, match=address):
            await start_server(
                address=address,
                servicers=[],
                authenticator=Authenticator(MemoryLedgerStore(), Clockwork(), FakeClock()),
                limits=ServerLimits(),
            )


async def test_a_second_gateway_on_the_same_port_is_refused(edge: Edge) -> None:
    with pytest.raises(ListenerRefused):
        await start_server(
            address=f"127.0.0.1:{edge.handle.port}",
            servicers=[],
            authenticator=Authenticator(edge.store, Clockwork(), edge.clock),
            limits=ServerLimits(),
        )


async def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ListenerRefused):
        await start_server(
            address="256.0.0.1:x",
            servicers=[],
            authenticator=Authenticator(MemoryLedgerStore(), Clockwork(), FakeClock()),
            limits=ServerLimits(),
        )


async def test_calls_beyond_the_limit_are_refused_with_their_reason_until_one_ends() -> None:
    async with running_edge(ServerLimits(calls_max=2)) as edge:
        go_on, running = asyncio.Event(), asyncio.Semaphore(0)

        async def wait(sink: object) -> None:
            running.release()
            await go_on.wait()

        edge.metering.script = wait
        said = chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text="Why?")])
        asked = inference_pb2.Inference(request_id="q-1", model="models/small", messages=[said])
        request = inference_pb2.StreamCompleteRequest(inference=asked)
        streams = [edge.inference.StreamComplete(request, metadata=bearer(APP_KEY)) for _ in range(2)]
        for _ in streams:
            await asyncio.wait_for(running.acquire(), 10)
        # Also for callers without a key: nothing is looked up for a call that has no place.
        for key in (APP_KEY, key_of(9)):
            refusal = await refused(edge.account.GetWallet(account_pb2.GetWalletRequest(), metadata=bearer(key)))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
            assert refusal.metadata == {"limit": "2 calls at once"}
            assert refusal.retry_seconds == 1
        health: Any = health_pb2_grpc.HealthStub(edge.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        go_on.set()
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.OK
        await edge.account.GetWallet(account_pb2.GetWalletRequest(), metadata=bearer(APP_KEY))


async def test_calls_far_beyond_the_limit_are_refused_by_grpc_itself() -> None:
    async with running_edge(ServerLimits(calls_max=1)) as edge:
        health: Any = health_pb2_grpc.HealthStub(edge.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.account.GetWallet(account_pb2.GetWalletRequest(), metadata=bearer(APP_KEY))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "Concurrent RPC limit exceeded!"
        for watch in watches:
            watch.cancel()


async def test_a_message_far_over_the_limit_is_cut_off_by_grpc_itself(edge: Edge) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = edge.channel.unary_unary(
        "/metergate.v1.InferenceService/Complete"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"x" * 1_000_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

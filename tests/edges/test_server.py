import socket
from typing import Any, cast

import grpc
import pytest
from edge_harness import Clockwork, Edge
from fakes import FakeClock, MemoryLedgerStore
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from metergate.core.errors import ListenerRefused
from metergate.edges.auth import Authenticator
from metergate.edges.server import ServerLimits, start_server

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


async def test_a_message_far_over_the_limit_is_cut_off_by_grpc_itself(edge: Edge) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = edge.channel.unary_unary(
        "/metergate.v1.InferenceService/Complete"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"x" * 1_000_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

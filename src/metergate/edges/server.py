"""The gRPC server: every service behind the gate, with health and reflection, every resource of it bounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from metergate.edges.auth import Authenticator
from metergate.edges.calls import Gate, ObserveCall, Servicer
from metergate.edges.listening import listener_refused, require_free
from metergate.edges.tls import Certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server takes."""

    message_bytes_max: int = 4 * 1024 * 1024  # a request of a million tokens; more than any model on sale reads
    # At once, of all services but health and reflection; more are refused with OVERLOADED. At 100 kB a call this is
    # 400 MB.
    calls_max: int = 4_000
    call_seconds_max: float = 660.0  # longer than any request runs and settles
    # An app's channel then connects anew, unnoticed. gRPC cannot end one call of an app that does not read, only its
    # connection: without an age such calls would keep their places for ever.
    connection_seconds_max: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHandle:
    """A server that serves."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer  # ``enter_graceful_shutdown`` makes every service NOT_SERVING
    port: int  # the one that was bound, also where port 0 was asked for


# gRPC itself cuts off what is larger, with a status of its own; up to this factor, our error tells the app the limit.
_HARD_LIMIT_FACTOR = 4

# gRPC itself refuses calls beyond this many times ``calls_max``, of all services, with a status that names no reason.
# Below it we say why: a call that is refused leaves within a millisecond, and does no work until then.
_HARD_CALLS_FACTOR = 2

# A phone that lost its network says no goodbye: it is found out, and its credit set free, within 40 seconds.
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000

# Apps may ping as often to keep their way through a carrier's NAT open; more often costs the radio and us.
_PING_INTERVAL_MS_MIN = 10_000


async def start_server(
    *,
    address: str,
    servicers: Sequence[Servicer],
    authenticator: Authenticator,
    limits: ServerLimits,
    certificates: Certificates | None = None,
    observe: ObserveCall = lambda method, error: None,
) -> ServerHandle:
    """Listen on ``address`` (HOST:PORT, port 0: any that is free) and serve. ListenerRefused if that cannot be.

    Without ``certificates`` it serves plaintext. ``observe`` is told of the end of every call.
    """
    require_free(address, "listener.address")
    server = grpc.aio.server(options=_options(limits), maximum_concurrent_rpcs=limits.calls_max * _HARD_CALLS_FACTOR)
    gate = Gate(authenticator, message_bytes_max=limits.message_bytes_max, calls_max=limits.calls_max, observe=observe)
    names = [servicer.service.full_name for servicer in servicers]
    for servicer in servicers:
        handlers = gate.handlers(servicer)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(servicer.service.full_name, handlers),))
    unregistered = cast(grpc.aio.Server, _Unregistered(server))
    health_servicer = await _add_health(unregistered, names)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], unregistered)
    try:
        port = (
            server.add_insecure_port(address)
            if certificates is None
            else server.add_secure_port(address, certificates.credentials())
        )
    except RuntimeError as exc:
        raise listener_refused(address, "listener.address") from exc
    await server.start()
    return ServerHandle(server=server, health=health_servicer, port=port)


class _Unregistered:
    """A server to the generated code of health and reflection, which would register their methods.

    For each call that comes in, of any method, grpc.aio looks at every registered one: 16 methods were a tenth of what
    the gateway's own thread did for a call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: "Sequence[grpc.GenericRpcHandler]") -> None:
        """Add what serves a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, name: str, handlers: object) -> None:
        """Do nothing: the service was added."""


async def _add_health(server: grpc.aio.Server, names: Sequence[str]) -> health.aio.HealthServicer:
    health_servicer = health.aio.HealthServicer()
    for name in names:
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    return health_servicer


def _options(limits: ServerLimits) -> list[tuple[str, int]]:
    return [
        # At this age no new calls are taken on a connection; those that run are ended the grace later.
        ("grpc.max_connection_age_ms", round(limits.connection_seconds_max * 1000)),
        ("grpc.max_connection_age_grace_ms", round(limits.call_seconds_max * 1000)),
        ("grpc.max_receive_message_length", limits.message_bytes_max * _HARD_LIMIT_FACTOR),
        ("grpc.so_reuseport", 0),  # a second gateway on the same port is a mistake, not a colleague
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS_MIN),
    ]

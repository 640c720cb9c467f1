"""The connection to a backend over gRPC, and what its statuses mean."""

from typing import Protocol

import grpc
from grpc import aio

from metergate.core.errors import BackendRejected, BackendUnavailable

# One message holds at most one whole answer: 131,072 tokens of 4 bytes, and as much again for what surrounds them.
ANSWER_BYTES_MAX = 1024 * 1024

# A peer that is lost without a word is noticed after 40 s. Pinging more often, servers of gRPC's would take for abuse.
_PING_MILLISECONDS = 30_000
_PING_ANSWER_MILLISECONDS = 10_000

# A backend that comes back is used again this soon; meanwhile calls fail at once, so that others can serve them.
_RECONNECT_MILLISECONDS_MAX = 5_000
_RECONNECT_MILLISECONDS_MIN = 500

# The request as such was refused; another backend would refuse it too.
_REJECTED_CODES = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE})


class ChannelOptions(Protocol):
    """How to reach a backend."""

    @property
    def address(self) -> str:
        """Any gRPC target: "127.0.0.1:50061"."""
        ...

    @property
    def connect_timeout_seconds(self) -> float:
        """At least 0.1; name look-up included."""
        ...

    @property
    def tls(self) -> bool:
        """Whether the backend must prove that it is the host of its address."""
        ...

    @property
    def ca_pem(self) -> bytes | None:
        """The authorities it must prove it to; None: the public ones."""
        ...

    @property
    def own_pem(self) -> tuple[bytes, bytes] | None:
        """The key and certificate that are shown to it; None: none are."""
        ...


def open_channel(options: ChannelOptions, *, message_bytes_max: int) -> aio.Channel:
    """Open a channel, within the event loop that uses it; to be closed. Larger messages of the backend are refused."""
    # A connection attempt ends with its time limit, and a call that waits for it fails with it.
    connect_milliseconds = round(options.connect_timeout_seconds * 1000)
    arguments = (
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MILLISECONDS),
        ("grpc.min_reconnect_backoff_ms", connect_milliseconds),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MILLISECONDS_MIN),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MILLISECONDS_MAX),
        # The windows of flow control stay at 64 KiB: grown to the bandwidth, they would read ahead megabytes.
        ("grpc.http2.bdp_probe", 0),
        # A dispatched request is never sent again unasked: what it cost the operator would go unrecorded.
        ("grpc.enable_retries", 0),
    )
    if not options.tls:
        return aio.insecure_channel(options.address, options=arguments)
    key_pem, certificate_pem = options.own_pem or (None, None)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=options.ca_pem, private_key=key_pem, certificate_chain=certificate_pem
    )
    return aio.secure_channel(options.address, credentials, options=arguments)


def failure(error: aio.AioRpcError, model_id: str) -> BackendRejected | BackendUnavailable:
    """What a call's status means. Its details are the backend's own words and are left out: they may quote a prompt."""
    problem = f"gRPC status {error.code().name}"
    if error.code() in _REJECTED_CODES:
        return BackendRejected(model_id=model_id, problem=problem)
    # Not connected, or lost, or draining: gRPC does not tell which.
    return BackendUnavailable(
        model_id=model_id, problem=problem, takes_none=error.code() is grpc.StatusCode.UNAVAILABLE
    )

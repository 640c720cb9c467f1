"""Every call of every service passes here, once in and once out.

In: the key, the size, the decoding, unknown fields (L8). Out: errors become statuses, in this one place.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_status import rpc_status

from metergate.core.errors import (
    AuthorizationRevoked,
    MessageTooLarge,
    Overloaded,
    RequestInvalid,
    Unauthenticated,
    Violation,
)
from metergate.core.rows import Authorization
from metergate.edges.status import status_code, to_status
from metergate.edges.violations import Violations
from metergate.telemetry.failures import describe

# Where a larger request has its unknown field is not worth holding the event loop for.
_SEARCHED_BYTES_MAX = 16 * 1024

_log = logging.getLogger(__name__)

# An app that reads has a status at once; one that stopped reading gets it behind all it did not read, or never.
STATUS_SECONDS_MAX = 2.0

# What never becomes a request, and so would leave no line in the log.
_REFUSED_HERE = (Unauthenticated, AuthorizationRevoked, MessageTooLarge, RequestInvalid)

Context = grpc.aio.ServicerContext[Any, Any]

# The caller, the decoded request and the call. Returns the response; a streaming one writes its own and returns None.
Behaviour = Callable[[Authorization, Any, Context], Awaitable[Any]]


# The method's full name, and the error that the call ended with.
ObserveCall = Callable[[str, BaseException | None], None]


class Servicer(Protocol):
    """One service."""

    @property
    def service(self) -> ServiceDescriptor:
        """What the proto says of it."""
        ...

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does, by its name in the proto."""
        ...


class Callers(Protocol):
    """Tells who is calling."""

    async def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Any:  # noqa: ANN401 - as behaviours take it
        """The caller, from the call's metadata; a MetergateError keeps it out."""
        ...


class Gate:
    """Lets calls in and errors out. Calls beyond ``calls_max`` at once and larger requests are refused.

    ``observe`` is told of the end of every call; it must not raise.
    """

    def __init__(self, authenticator: Callers, *, message_bytes_max: int, calls_max: int, observe: ObserveCall) -> None:
        self._authenticator = authenticator
        self._message_bytes_max = message_bytes_max
        self._calls_max = calls_max
        self._observe = observe
        self._calls = 0  # that were let in and have not ended

    def handlers(self, servicer: Servicer) -> "dict[str, grpc.RpcMethodHandler[bytes, Any]]":
        """Handlers for all methods of a service, for a server to register; KeyError if a behaviour is missing."""
        behaviours = servicer.behaviours()
        return {method.name: self._handler(method, behaviours[method.name]) for method in servicer.service.methods}

    def _handler(self, method: MethodDescriptor, behaviour: Behaviour) -> "grpc.RpcMethodHandler[bytes, Any]":
        request_class = GetMessageClass(method.input_type)

        async def handle(data: bytes, context: Context) -> Any:  # noqa: ANN401 - any service's response
            try:
                self._let_in()
                try:
                    caller = await self._authenticator.authenticate(context.invocation_metadata() or ())
                    response = await behaviour(caller, self._decode(data, request_class), context)
                finally:
                    self._calls -= 1
                self._observe(method.full_name, None)
                return response
            except asyncio.CancelledError as error:
                self._observe(method.full_name, error)
                raise
            except Exception as error:  # noqa: BLE001 - the last place that can turn an error into a status
                self._observe(method.full_name, error)
                await _refuse(context, error, method.full_name)

        # The request stays bytes here: a decoding error inside grpc's own deserializer would leave without ErrorInfo.
        serializer = GetMessageClass(method.output_type).SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(handle, response_serializer=serializer)
        return grpc.unary_unary_rpc_method_handler(handle, response_serializer=serializer)

    def _let_in(self) -> None:
        if self._calls >= self._calls_max:
            raise Overloaded(limit=f"{self._calls_max} calls at once")
        self._calls += 1

    def _decode(self, data: bytes, request_class: type[Message]) -> Message:
        if len(data) > self._message_bytes_max:
            raise MessageTooLarge(bytes=len(data), bytes_max=self._message_bytes_max)
        return decode(data, request_class)


def decode(data: bytes, request_class: type[Message]) -> Message:
    """The request; RequestInvalid if it cannot be decoded or has fields that this version does not know."""
    try:
        request = request_class.FromString(data)
    except DecodeError as exc:
        raise RequestInvalid(Violation("request", f"is no {request_class.DESCRIPTOR.full_name}")) from exc
    size = request.ByteSize()
    request.DiscardUnknownFields()
    if request.ByteSize() != size:
        if len(data) > _SEARCHED_BYTES_MAX:
            raise RequestInvalid(Violation("request", "has a field that this version does not know"))
        violations = Violations()
        for path, number in _unknown_fields(request_class.FromString(data), "request"):
            violations.add(path, f"has the unknown field {number}")
        violations.check()
    return request


def _unknown_fields(message: Message, path: str) -> Iterator[tuple[str, int]]:
    """Where unknown fields are: the path of the message and the field's number."""
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]
        yield path, unknown.field_number
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        below = field.name if path == "request" else f"{path}.{field.name}"
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _unknown_fields(item, f"{below}[{index}]")
        else:
            yield from _unknown_fields(value, below)


async def _refuse(context: Context, error: Exception, method: str) -> None:
    if status_code(error) is grpc.StatusCode.INTERNAL:
        _log.error("%s failed: %s", method, type(error).__name__, extra={"exception": describe(error)})
    elif isinstance(error, _REFUSED_HERE):
        _log.info("call refused", extra={"method": method, "outcome": error.reason, "peer": context.peer()})
    status = rpc_status.to_status(to_status(error))
    try:
        async with asyncio.timeout(STATUS_SECONDS_MAX):
            await context.abort(status.code, status.details, status.trailing_metadata)
    except TimeoutError:
        _log.info("%s: the app does not read, its status is left to gRPC", method)
    except grpc.aio.InternalError:
        _log.info("%s: the app was gone before its status", method)

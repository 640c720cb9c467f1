"""The one table from errors to gRPC statuses. What is not in it is a defect, and INTERNAL says nothing of it."""

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from metergate.core import errors

ERROR_DOMAIN = "metergate"

STATUS_CODES: dict[type[errors.MetergateError], grpc.StatusCode] = {
    errors.InsufficientCredit: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CapReached: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WalletSuspended: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefundExceedsCharge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AlreadyReversed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReservationsOpen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ErasureUnfinished: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PriceUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.AuthorizationRevoked: grpc.StatusCode.PERMISSION_DENIED,
    errors.SubscriberKeyRequired: grpc.StatusCode.PERMISSION_DENIED,
    errors.ModelNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ResourceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.RequestInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelTaskWrong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PromptTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MessageTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BackendRejected: grpc.StatusCode.INVALID_ARGUMENT,
    errors.IdConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.RequestIdConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.RequestInProgress: grpc.StatusCode.ABORTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.BackendUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ContentPolicyUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.LedgerDiffers: grpc.StatusCode.UNAVAILABLE,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    # Not RESOURCE_EXHAUSTED: that is a limit of the caller's own, and clients do not try another gateway for it.
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.ReservationNotOwned: grpc.StatusCode.UNAVAILABLE,  # another process settles it
}

# Long enough to find another backend, a reopened store or a restarted gateway; short enough for a person who waits.
_RETRY_SECONDS = 1

# The message travels twice and the details once in the trailing metadata, of which HTTP/2 peers take 8 KiB: with these
# bounds the largest status stays below 6 KiB (in UTF-8 bytes; the message is percent-encoded, at most threefold).
_MESSAGE_BYTES_MAX = 512
_VALUE_BYTES_MAX = 160
VIOLATIONS_MAX = 8


def status_code(error: BaseException) -> grpc.StatusCode:
    """The code an error has on the wire: INTERNAL for all that the table does not know."""
    return STATUS_CODES.get(type(error), grpc.StatusCode.INTERNAL)  # type: ignore[arg-type]


def to_status(error: BaseException) -> Status:
    """The status with its ErrorInfo and, where it helps, BadRequest or RetryInfo. A defect's own text never leaves."""
    code = status_code(error)
    if code is grpc.StatusCode.INTERNAL or not isinstance(error, errors.MetergateError):
        info = ErrorInfo(domain=ERROR_DOMAIN, reason=errors.MetergateError.reason)
        return _status(grpc.StatusCode.INTERNAL, "The gateway failed.", info)
    metadata = {name: _cut(value, _VALUE_BYTES_MAX) for name, value in error.metadata().items()}
    info = ErrorInfo(domain=ERROR_DOMAIN, reason=error.reason, metadata=metadata)
    message = _cut(str(error), _MESSAGE_BYTES_MAX)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return _status(code, message, info, _bad_request(error, message))
    if code is grpc.StatusCode.UNAVAILABLE:
        return _status(code, message, info, RetryInfo(retry_delay=_retry_delay(error)))
    return _status(code, message, info)


def _retry_delay(error: errors.MetergateError) -> Duration:
    """When to try again: not before that can help, where that is known."""
    known_seconds = error.retry_seconds if isinstance(error, errors.BackendUnavailable) else None
    delay = Duration()
    delay.FromMilliseconds(round(max(known_seconds or 0.0, _RETRY_SECONDS) * 1_000))
    return delay


def _status(code: grpc.StatusCode, message: str, *details: Message) -> Status:
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _bad_request(error: errors.MetergateError, message: str) -> BadRequest:
    if isinstance(error, errors.RequestInvalid):
        violations = error.violations[:VIOLATIONS_MAX]
    else:
        violations = (errors.Violation(getattr(error, "field", "request"), message),)
    return BadRequest(
        field_violations=[
            BadRequest.FieldViolation(
                field=_cut(violation.field, _VALUE_BYTES_MAX),
                description=_cut(violation.description, _VALUE_BYTES_MAX),
            )
            for violation in violations
        ]
    )


def _cut(text: str, bytes_max: int) -> str:
    """At most so many bytes of UTF-8, whole characters; what no UTF-8 can say becomes a question mark."""
    encoded = text.encode("utf-8", "replace")
    return encoded[:bytes_max].decode("utf-8", "ignore")

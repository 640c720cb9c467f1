"""Refusals of one request, because of what it asks for."""

from dataclasses import dataclass
from typing import ClassVar

from metergate.core.errors.base import MetergateError


@dataclass(kw_only=True, eq=False)
class ModelNotFound(MetergateError):
    """There is no model {model_id}."""

    reason: ClassVar[str] = "MODEL_NOT_FOUND"
    model_id: str


@dataclass(kw_only=True, eq=False)
class ResourceNotFound(MetergateError):
    """There is no {resource_name}."""

    reason: ClassVar[str] = "RESOURCE_NOT_FOUND"
    resource_name: str


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str  # path in the request: "messages[2].role"
    description: str


class RequestInvalid(MetergateError):
    """The request is invalid."""

    reason: ClassVar[str] = "INVALID_REQUEST"

    def __init__(self, *violations: Violation) -> None:
        super().__init__()
        self.violations = violations

    def __str__(self) -> str:
        return "; ".join(f"{violation.field}: {violation.description}" for violation in self.violations)


@dataclass(kw_only=True, eq=False)
class ModelTaskWrong(MetergateError):
    """The model {model_id} is for {task} requests only."""

    reason: ClassVar[str] = "MODEL_TASK_WRONG"
    model_id: str
    task: str  # CHAT or EMBEDDING
    field: str = "model"  # path in the request


@dataclass(kw_only=True, eq=False)
class PromptTooLong(MetergateError):
    """The prompt has {prompt_tokens} tokens or more; {model_id} takes at most {prompt_tokens_max}."""

    reason: ClassVar[str] = "PROMPT_TOO_LONG"
    model_id: str
    prompt_tokens: int
    prompt_tokens_max: int
    field: str = "messages"  # path in the request


@dataclass(kw_only=True, eq=False)
class MessageTooLarge(MetergateError):
    """The request has {bytes} bytes; at most {bytes_max} are taken."""

    reason: ClassVar[str] = "MESSAGE_TOO_LARGE"
    bytes: int
    bytes_max: int


@dataclass(kw_only=True, eq=False)
class ReservationsOpen(MetergateError):
    """The subscriber {subscriber_id} has {reservations} requests running: wait until they have ended."""

    reason: ClassVar[str] = "RESERVATIONS_OPEN"
    subscriber_id: str
    reservations: int


@dataclass(kw_only=True, eq=False)
class ErasureUnfinished(MetergateError):
    """The subscriber {subscriber_id} is being forgotten: if that was interrupted, erase it again."""

    reason: ClassVar[str] = "ERASURE_UNFINISHED"
    subscriber_id: str


@dataclass(kw_only=True, eq=False)
class RequestIdConflict(MetergateError):
    """The request id {request_id} was used with other content."""

    reason: ClassVar[str] = "REQUEST_ID_CONFLICT"
    request_id: str


@dataclass(kw_only=True, eq=False)
class RequestInProgress(MetergateError):
    """The request {request_id} is still running."""

    reason: ClassVar[str] = "REQUEST_IN_PROGRESS"
    request_id: str


@dataclass(kw_only=True, eq=False)
class ReservationNotOwned(MetergateError):
    """The reservation {reservation_id} belongs to another gateway process, or to an earlier epoch of this one."""

    reason: ClassVar[str] = "RESERVATION_NOT_OWNED"
    reservation_id: str

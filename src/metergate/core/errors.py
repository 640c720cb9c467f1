"""Every failure a caller can decide on is one class here; its docstring's first line is the message.

``reason`` is stable and sent to the app; the fields are sent beside it as metadata. Nothing here knows gRPC or HTTP.
"""

import inspect
from dataclasses import dataclass, field, fields, is_dataclass
from typing import ClassVar

# Marks, in its metadata, a field that is for the gateway only.
UNTOLD = "untold"


class MetergateError(Exception):
    """Metergate could not do what was asked."""

    reason: ClassVar[str] = "INTERNAL"

    def metadata(self) -> dict[str, str]:
        """The error's fields as text, by name; not None, what is no affair of the app's, nor the place in a request."""
        if not is_dataclass(self):
            return {}
        values = {told.name: getattr(self, told.name) for told in fields(self) if UNTOLD not in told.metadata}
        return {name: str(value) for name, value in values.items() if value is not None and name != "field"}

    def __str__(self) -> str:
        first_line = inspect.cleandoc(self.__doc__ or "").splitlines()[0]
        return first_line.format_map(self.metadata())


# --- credit ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class InsufficientCredit(MetergateError):
    """The wallet has {available_microcredits} microcredits available; this needs at least {required_microcredits}."""

    reason: ClassVar[str] = "INSUFFICIENT_CREDIT"
    available_microcredits: int
    required_microcredits: int


@dataclass(kw_only=True, eq=False)
class CapReached(MetergateError):
    """The {cap} leaves {remaining_microcredits} microcredits; this needs at least {required_microcredits}."""

    reason: ClassVar[str] = "CAP_REACHED"
    cap: str  # "authorization's cap" or "request's credit limit"
    remaining_microcredits: int
    required_microcredits: int


@dataclass(kw_only=True, eq=False)
class WalletSuspended(MetergateError):
    """The wallet of this subscriber is suspended."""

    reason: ClassVar[str] = "WALLET_SUSPENDED"


@dataclass(kw_only=True, eq=False)
class RefundExceedsCharge(MetergateError):
    """{amount_microcredits} of {charged_microcredits} microcredits is too much: {refunded_microcredits} went back."""

    reason: ClassVar[str] = "REFUND_EXCEEDS_CHARGE"
    charge_id: str
    charged_microcredits: int
    refunded_microcredits: int  # before
    amount_microcredits: int


@dataclass(kw_only=True, eq=False)
class AlreadyReversed(MetergateError):
    """The grant {grant_id} was reversed before."""

    reason: ClassVar[str] = "ALREADY_REVERSED"
    grant_id: str


# --- access ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Unauthenticated(MetergateError):
    """The call has no valid key: {problem}."""

    reason: ClassVar[str] = "UNAUTHENTICATED"
    problem: str


@dataclass(kw_only=True, eq=False)
class AuthorizationRevoked(MetergateError):
    """The key or its authorization was revoked."""

    reason: ClassVar[str] = "AUTHORIZATION_REVOKED"


@dataclass(kw_only=True, eq=False)
class SubscriberKeyRequired(MetergateError):
    """Only the subscriber's own key may see this; an app's key may not."""

    reason: ClassVar[str] = "SUBSCRIBER_KEY_REQUIRED"


@dataclass(kw_only=True, eq=False)
class ModelNotAllowed(MetergateError):
    """This authorization does not allow the model {model_id}."""

    reason: ClassVar[str] = "MODEL_NOT_ALLOWED"
    model_id: str


# --- requests -------------------------------------------------------------------------------------------------------


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


# --- what the gateway needs -----------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class BackendUnavailable(MetergateError):
    """The backend of {model_id} failed: {problem}."""

    reason: ClassVar[str] = "BACKEND_UNAVAILABLE"
    model_id: str
    problem: str
    charge: str | None = None  # name of the charge for what was delivered before the failure
    retry_seconds: float | None = None  # until a backend can be tried again; None: at once, or it is not known
    was_reached: bool = field(default=True, metadata={UNTOLD: True})  # False: it was sent nothing, so it cost nothing
    takes_none: bool = field(default=False, metadata={UNTOLD: True})  # True: it takes no request now, whatever is asked
    # True: instead of a byte of an answer, the connection ended, at once, and it was one kept from an earlier request.
    # The backend may have been closing it when the request came: asked once more, it may well answer.
    connection_was_kept: bool = field(default=False, metadata={UNTOLD: True})


@dataclass(kw_only=True, eq=False)
class BackendRejected(MetergateError):
    """The backend of {model_id} refused the request: {problem}."""

    reason: ClassVar[str] = "BACKEND_REJECTED"
    model_id: str
    problem: str
    field: str = "request"  # path in the request; "request": all of it


@dataclass(kw_only=True, eq=False)
class StoreUnavailable(MetergateError):
    """The ledger's store is unavailable."""

    reason: ClassVar[str] = "STORE_UNAVAILABLE"


@dataclass(kw_only=True, eq=False)
class ContentPolicyUnavailable(MetergateError):
    """The content policy, without which nothing is delivered, failed: {problem}."""

    reason: ClassVar[str] = "CONTENT_POLICY_UNAVAILABLE"
    problem: str
    charge: str | None = None  # name of the charge for what was delivered before the failure


@dataclass(kw_only=True, eq=False)
class Overloaded(MetergateError):
    """The gateway is overloaded: it has {limit}."""

    reason: ClassVar[str] = "OVERLOADED"
    limit: str  # "1000 requests at once"


@dataclass(kw_only=True, eq=False)
class LedgerDiffers(MetergateError):
    """The ledger's books differ: this gateway admits nothing until somebody has looked into it and restarted it."""

    reason: ClassVar[str] = "LEDGER_DIFFERS"


@dataclass(kw_only=True, eq=False)
class ShuttingDown(MetergateError):
    """The gateway is shutting down."""

    reason: ClassVar[str] = "SHUTTING_DOWN"
    charge: str | None = None


@dataclass(kw_only=True, eq=False)
class DeadlineExceeded(MetergateError):
    """The request took longer than {limit}."""

    reason: ClassVar[str] = "DEADLINE_EXCEEDED"
    limit: str
    charge: str | None = None


@dataclass(kw_only=True, eq=False)
class PriceUnavailable(MetergateError):
    """The model {model_id} has no price at this time."""

    reason: ClassVar[str] = "PRICE_UNAVAILABLE"
    model_id: str


# --- setting up -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class RateCardInvalid(MetergateError):
    """The rate card {rate_card_id} is invalid: {problem}."""

    reason: ClassVar[str] = "RATE_CARD_INVALID"
    rate_card_id: str
    problem: str


@dataclass(kw_only=True, eq=False)
class IdConflict(MetergateError):
    """The id {id} was used for another {resource}."""

    reason: ClassVar[str] = "ID_CONFLICT"
    resource: str
    id: str


@dataclass(kw_only=True, eq=False)
class RateCardServed(IdConflict):
    """The rate card {id} was served with other prices or times: change it back, and add a card that begins later."""

    resource: str = "rate card"


@dataclass(kw_only=True, eq=False)
class TokenizerInvalid(MetergateError):
    """The tokenizer {path} cannot be used: {problem}."""

    reason: ClassVar[str] = "TOKENIZER_INVALID"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class StoreRefused(MetergateError):
    """The store {path} cannot be opened: {problem}."""

    reason: ClassVar[str] = "STORE_REFUSED"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class BackupRefused(MetergateError):
    """The backup {path} cannot be restored: {problem}."""

    reason: ClassVar[str] = "BACKUP_REFUSED"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class FileRefused(MetergateError):
    """The file {path} cannot be written: {problem}."""

    reason: ClassVar[str] = "FILE_REFUSED"
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """What is wrong with one key of the configuration."""

    key: str  # path in the file: "models.smollm2.backends"; "" for the file itself
    description: str
    variable: str | None = None  # the environment variable that the value came from; None: it came from the file

    def line(self, file: str) -> str:
        """The problem with the place to mend."""
        place = file if self.variable is None else f"environment variable {self.variable}"
        key = "" if self.key in ("", self.variable) else f"{self.key}: "
        return f"{place}: {key}{self.description}"


class ConfigInvalid(MetergateError):
    """The configuration is invalid."""

    reason: ClassVar[str] = "CONFIG_INVALID"

    def __init__(self, file: object, *problems: ConfigProblem) -> None:
        super().__init__()
        self.file = str(file)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(problem.line(self.file) for problem in self.problems)


@dataclass(kw_only=True, eq=False)
class ListenerRefused(MetergateError):
    """The gateway cannot listen on {address}: {problem}."""

    reason: ClassVar[str] = "LISTENER_REFUSED"
    address: str
    problem: str


@dataclass(kw_only=True, eq=False)
class CertificateInvalid(MetergateError):
    """{key}: {path} cannot be used for TLS: {problem}."""

    reason: ClassVar[str] = "CERTIFICATE_INVALID"
    key: str  # of the configuration: "listener.tls.key_path"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class CommandRefused(MetergateError):
    """The gateway that serves this store refused: {problem}."""

    reason: ClassVar[str] = "COMMAND_REFUSED"
    problem: str


# --- defects --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class TransitionInvalid(MetergateError):
    """A reservation that is {state} cannot {event}."""

    state: str
    event: str


@dataclass(kw_only=True, eq=False)
class LedgerInvariantBroken(MetergateError):
    """The ledger refused an operation that would break a law: {problem}."""

    problem: str

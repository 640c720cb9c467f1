"""What the gateway needs to serve a request, and has not."""

from dataclasses import dataclass, field
from typing import ClassVar

from metergate.core.errors.base import UNTOLD, MetergateError


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

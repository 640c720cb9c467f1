"""Every failure a caller can decide on is one class here; its docstring's first line is the message.

``reason`` is stable and sent to the app; the fields are sent beside it as metadata. Nothing here knows gRPC or HTTP.
"""

from metergate.core.errors.access import AuthorizationRevoked, ModelNotAllowed, SubscriberKeyRequired, Unauthenticated
from metergate.core.errors.base import UNTOLD, MetergateError
from metergate.core.errors.credit import (
    AlreadyReversed,
    CapReached,
    InsufficientCredit,
    RefundExceedsCharge,
    WalletSuspended,
)
from metergate.core.errors.defects import LedgerInvariantBroken, TransitionInvalid
from metergate.core.errors.needs import (
    BackendRejected,
    BackendUnavailable,
    ContentPolicyUnavailable,
    DeadlineExceeded,
    LedgerDiffers,
    Overloaded,
    PriceUnavailable,
    ShuttingDown,
    StoreUnavailable,
)
from metergate.core.errors.requests import (
    MessageTooLarge,
    ModelNotFound,
    ModelTaskWrong,
    PromptTooLong,
    RequestIdConflict,
    RequestInProgress,
    RequestInvalid,
    ReservationNotOwned,
    ReservationsOpen,
    ResourceNotFound,
    Violation,
)
from metergate.core.errors.setting_up import (
    BackupRefused,
    CertificateInvalid,
    CommandRefused,
    ConfigInvalid,
    ConfigProblem,
    FileRefused,
    IdConflict,
    ListenerRefused,
    RateCardInvalid,
    StoreRefused,
    TokenizerInvalid,
)

__all__ = [
    "UNTOLD",
    "AlreadyReversed",
    "AuthorizationRevoked",
    "BackendRejected",
    "BackendUnavailable",
    "BackupRefused",
    "CapReached",
    "CertificateInvalid",
    "CommandRefused",
    "ConfigInvalid",
    "ConfigProblem",
    "ContentPolicyUnavailable",
    "DeadlineExceeded",
    "FileRefused",
    "IdConflict",
    "InsufficientCredit",
    "LedgerDiffers",
    "LedgerInvariantBroken",
    "ListenerRefused",
    "MessageTooLarge",
    "MetergateError",
    "ModelNotAllowed",
    "ModelNotFound",
    "ModelTaskWrong",
    "Overloaded",
    "PriceUnavailable",
    "PromptTooLong",
    "RateCardInvalid",
    "RefundExceedsCharge",
    "RequestIdConflict",
    "RequestInProgress",
    "RequestInvalid",
    "ReservationNotOwned",
    "ReservationsOpen",
    "ResourceNotFound",
    "ShuttingDown",
    "StoreRefused",
    "StoreUnavailable",
    "SubscriberKeyRequired",
    "TokenizerInvalid",
    "TransitionInvalid",
    "Unauthenticated",
    "Violation",
    "WalletSuspended",
]

"""Refusals of the caller."""

from dataclasses import dataclass
from typing import ClassVar

from metergate.core.errors.base import MetergateError


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

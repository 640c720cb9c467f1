"""Refusals of the wallet: there is no credit, or it may not be spent."""

from dataclasses import dataclass
from typing import ClassVar

from metergate.core.errors.base import MetergateError


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

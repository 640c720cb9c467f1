"""What an audit finds, and how much of it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from metergate.core.accounts import AccountBalance

# Differences named for one subscriber; a ledger with more is as broken as it can be.
DIFFERENCES_MAX = 1_000


class DifferenceKind(StrEnum):
    """What does not add up."""

    SEQUENCE = "SEQUENCE"
    TRANSFER = "TRANSFER"
    GRANT = "GRANT"
    AUTHORIZATION = "AUTHORIZATION"
    RESERVATION = "RESERVATION"
    CHARGE = "CHARGE"
    CORRECTION = "CORRECTION"
    PRICE = "PRICE"
    WALLET = "WALLET"
    TOTAL = "TOTAL"
    ACCOUNT = "ACCOUNT"
    ROW = "ROW"  # what is stored cannot be read as what it should be


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that does not add up."""

    kind: DifferenceKind
    subscriber_id: str  # "" if it is of the whole ledger
    resource_id: str  # of the grant, charge, ...
    sentence: str  # for people: what is there and what should be


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRound:
    """What a look at some subscribers found."""

    subscribers: int  # that were audited
    different: int  # of these, those whose books differ
    differences: tuple[Difference, ...]
    account_balances: Mapping[str, AccountBalance]
    seconds: float


class Findings:
    """What is found of one subscriber, DIFFERENCES_MAX at most."""

    def __init__(self, subscriber_id: str) -> None:
        self._subscriber_id = subscriber_id
        self.differences: list[Difference] = []

    def say(self, kind: DifferenceKind, resource_id: str, finding: str) -> None:
        """Add one; ``finding`` is the rest of the sentence that begins with what it is of."""
        if len(self.differences) < DIFFERENCES_MAX:
            sentence = f"{kind.capitalize()} {resource_id} of subscriber {self._subscriber_id} {finding}."
            self.differences.append(
                Difference(kind=kind, subscriber_id=self._subscriber_id, resource_id=resource_id, sentence=sentence)
            )

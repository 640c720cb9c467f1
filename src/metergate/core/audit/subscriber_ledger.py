"""What a store hands over of one subscriber to be audited."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.accounts import AccountBalance
from metergate.core.rating import RateCard
from metergate.core.reservation import Reservation
from metergate.core.rows import Authorization, Charge, Correction, Grant, Transfer, Wallet


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableRow:
    """A stored row that could not be read."""

    row_name: str  # its table and id: "charges/0f3c..."
    problem: str


class ClosedProblem(StrEnum):
    """What is wrong with a reservation that is not ACTIVE; the value is the rest of the sentence about it."""

    NOT_CHARGED = "is SETTLED but has no charge"
    SETS_ASIDE = "is closed but has credit set aside"
    HALF_CLOSED = "is closed but does not say when, or why"
    WATERMARKS = "breaks 0 <= delivered <= captured <= reserved <= limit"
    DELIVERED = "was RELEASED for nothing, but had delivered something"
    OWNERLESS = "names an owner that is not there"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedReservation:
    """A reservation that is not ACTIVE, and the first thing that is wrong with it."""

    reservation_id: str
    problem: ClosedProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberLedger:
    """Everything the ledger holds of one subscriber, for the audit. Sequences are read once, in order, lazily."""

    wallet: Wallet
    is_erased: bool  # the subscriber was forgotten: its authorizations and keys are gone
    rate_cards: Mapping[str, RateCard]  # every one that was ever recorded, by id; the same for all subscribers
    account_balances: Mapping[str, AccountBalance]  # as rolled up, of the whole ledger; the same for all subscribers
    reserved_microcredits: int  # by all open reservations of the whole ledger, as counted beside them; likewise
    grants: tuple[Grant, ...]
    authorizations: tuple[Authorization, ...]
    open_reservations: tuple[Reservation, ...]
    ownerless_reservation_ids: tuple[str, ...]  # open ones whose owner is not recorded: nobody would ever settle them
    wrong_closed_reservations: tuple[ClosedReservation, ...]
    # None at all although it is not old enough to be pruned, not SETTLED, or of other content.
    charge_ids_without_settled_reservation: tuple[str, ...]
    charge_ids_refunded_too_much: tuple[str, ...]  # by more than they were, or no charge of this subscriber's
    refunded_microcredits: Mapping[str, int]  # by authorization
    charges: AsyncIterator[Charge]  # in order of settling
    corrections: AsyncIterator[Correction]  # in order of recording
    transfers: AsyncIterator[Transfer]  # in order of sequence
    unreadable_rows: list[UnreadableRow] = field(default_factory=list)  # grows while the sequences are read

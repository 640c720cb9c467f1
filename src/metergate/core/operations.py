"""What the ledger can be asked to do, and what it answers.

Each operation carries the id that makes its retry harmless (L4).
"""

from enum import StrEnum

from metergate.core.changes import row
from metergate.core.reservation import CloseCause, Estimate, Owner, Reservation
from metergate.core.rows import Attempt, Authorization, Charge, FinishReason, Grant, Wallet, WalletState
from metergate.core.usage import CountingSource, Usage


@row
class AddGrant:
    """Add credits.

    The same grant id with the same content answers with the first grant; with other content it is IdConflict.
    """

    grant: Grant  # remaining_microcredits == amount_microcredits


@row
class Reserve:
    """Set credit aside for a request and capture its first part.

    Reserves ``wanted_microcredits``, or what there is of it, but at least ``minimum_microcredits`` or nothing. A
    request is the same if its ``content_hash`` is: amounts follow from it and from the price, and are not compared.
    Asked again for the same reservation while it is open, it answers with the reservation as it stands.
    """

    reservation_id: str
    subscriber_id: str
    authorization_id: str
    request_id: str
    content_hash: bytes
    owner: Owner
    model_id: str
    provider_id: str
    counting_source: CountingSource
    rate_card_id: str
    minimum_microcredits: int  # the prompt and one token
    wanted_microcredits: int  # the prompt and a first slice of completion
    limit_microcredits: int  # the request's own ceiling
    capture_microcredits: int  # the prompt; <= minimum_microcredits
    capture_usage: Usage  # what capture_microcredits is the price of
    now_us: int
    estimate: Estimate | None = None  # of the prompt, if what is captured is a bound


@row
class Reserved:
    """The request may run."""

    reservation: Reservation


@row
class Replayed:
    """The request was charged before; this is the record. Nothing was reserved."""

    charge: Charge
    spendable_microcredits: int


@row
class Capture:
    """Debit a reservation up to a cumulative amount, extending it on the way as far as grants and caps allow."""

    reservation_id: str
    subscriber_id: str
    owner: Owner
    target_microcredits: int  # cumulative; below what is captured already: nothing changes
    target_usage: Usage  # cumulative; what target_microcredits is the price of
    wanted_microcredits: int  # cumulative; extend the reservation to this if possible
    delivered_microcredits: int  # cost of what had been delivered when this was asked for
    now_us: int
    estimate: Estimate | None = None  # of what target_usage is the bound of


class CaptureStatus(StrEnum):
    """Whether the reservation still took captures."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"  # it is settled or released, or unknown
    NOT_OWNER = "NOT_OWNER"  # it belongs to another process or epoch


@row
class Captured:
    """Where the reservation stands. Deliver only what ``captured_microcredits`` covers."""

    status: CaptureStatus
    captured_microcredits: int
    reserved_microcredits: int
    refusal: (
        CloseCause | None
    )  # why the reservation is less than wanted: CREDIT_EXHAUSTED, CAP_REACHED, CREDIT_LIMIT_REACHED


@row
class Settlement:
    """What a charge records of the request, as far as the reservation does not know it."""

    charge_id: str
    charged_microcredits: int
    usage_counted: Usage
    usage_reported: Usage | None
    usage_mismatch: bool
    attempts: tuple[Attempt, ...]
    finish_reason: FinishReason
    captured_microcredits: int  # captured in the same commit if the reservation covers it; 0: nothing more


@row
class Settle:
    """Close a reservation: charge it, or with no settlement release it. What is not charged goes back.

    Asked again, it answers with the first outcome, also if the cause or the settlement is another now: only the owner
    settles, once, and asks again only what it asked before.
    """

    reservation_id: str
    subscriber_id: str
    owner: Owner
    close_cause: CloseCause
    settlement: Settlement | None
    now_us: int


@row
class Recover:
    """Settle an ACTIVE reservation that nobody runs any more; if nothing was captured, release it (L5).

    It is settled at what was captured, or at its estimate if that is less.
    """

    reservation_id: str
    subscriber_id: str
    charge_id: str
    survivor: Owner | None  # a reservation of this owner is alive and is left alone; None: nobody runs it
    now_us: int


@row
class Settled:
    """The reservation is closed."""

    charge: Charge | None  # None: released, nothing charged
    spendable_microcredits: int  # what the authorization may still spend


@row
class EraseSubscriber:
    """Replace what names a subscriber by a pseudonym that tells nothing; its keys and authorizations go.

    Asked again after an interruption it goes on, as it was asked for first. Once it is done it finds no such
    subscriber: that it was there is forgotten, too.
    """

    subscriber_id: str
    pseudonym: str  # random
    reason: str  # kept, as the actor is: neither may have the subscriber's id
    actor: str
    now_us: int


@row
class AddSubscriber:
    """Open a wallet. The same subscriber again answers with the wallet as it is now, whatever state it is in."""

    wallet: Wallet  # sequence == 0


@row
class AddAuthorization:
    """Record a subscriber's consent. The same id with other content is IdConflict."""

    authorization: Authorization  # charged and reserved are 0


@row
class RevokeAuthorization:
    """End a subscriber's consent, for ever. Asked again it answers with the first revocation."""

    authorization_id: str
    now_us: int


@row
class Refund:
    """Give back part of a charge. The same id with other content is IdConflict."""

    correction_id: str  # unique within the subscriber among all corrections
    subscriber_id: str
    charge_id: str
    amount_microcredits: int  # at most what was charged and not refunded yet
    grant_seconds: int  # how long the grant lives that is made where a grant that paid has expired
    reason: str
    actor: str
    now_us: int


@row
class Adjust:
    """Give credit, or take what is available. The same id with other content is IdConflict."""

    correction_id: str  # unique within the subscriber among all corrections
    subscriber_id: str
    amount_microcredits: int  # below 0: taken
    grant_seconds: int | None  # how long what is given lives; None: for ever
    reason: str
    actor: str
    now_us: int


@row
class Reverse:
    """Take back a grant whose payment was taken back. The same id with other content is IdConflict."""

    correction_id: str  # unique within the subscriber among all corrections
    subscriber_id: str
    grant_id: str
    reason: str
    actor: str
    now_us: int


@row
class SetWalletState:
    """Stop a wallet, or let it be spent from again. The same id with other content is IdConflict."""

    correction_id: str  # unique within the subscriber among all corrections
    subscriber_id: str
    state: WalletState
    reason: str
    actor: str
    now_us: int


@row
class Expire:
    """Move on what remains of a wallet's grants whose time is over; answered with the wallet."""

    subscriber_id: str
    now_us: int

"""The ledger's rows besides reservations.

Rows are immutable: a change is a new row in the old one's place, a correction is a new transfer.
Accounts (double entry): ``grant:{grant_id}`` is what the operator owes the subscriber; the business accounts are the
constants below. Times are microseconds since the epoch, UTC.
"""

from enum import StrEnum

from metergate.core.changes import row
from metergate.core.reservation import Allocation, CloseCause
from metergate.core.usage import CountingSource, Usage

PAYMENTS_ACCOUNT = "payments"  # debited for credits that were paid for
GOODWILL_ACCOUNT = "goodwill"  # debited for credits that were given away
REVENUE_ACCOUNT = "revenue"  # credited with every charge
BREAKAGE_ACCOUNT = "breakage"  # credited with what expired unused
REVERSALS_ACCOUNT = "reversals"  # credited with what was taken back because its payment was


def grant_account(grant_id: str) -> str:
    """The account of one grant."""
    return f"grant:{grant_id}"


class WalletState(StrEnum):
    """Whether a wallet may be spent from."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"


class GrantSource(StrEnum):
    """Where a grant's credits came from."""

    PLAN_CYCLE = "PLAN_CYCLE"
    TOP_UP = "TOP_UP"
    GIFT = "GIFT"
    REFUND = "REFUND"
    ROLLOVER = "ROLLOVER"


# What was paid for with money; every other source is the operator's goodwill.
PAID_SOURCES = frozenset({GrantSource.PLAN_CYCLE, GrantSource.TOP_UP})


def funding_account(source: GrantSource) -> str:
    """The business account that a grant of this source is debited from."""
    return PAYMENTS_ACCOUNT if source in PAID_SOURCES else GOODWILL_ACCOUNT


class Channel(StrEnum):
    """Through what a subscriber's credits are spent."""

    APP = "APP"
    CLOUD_PHONE = "CLOUD_PHONE"
    CLOUD_PC = "CLOUD_PC"


class TransferKind(StrEnum):
    """Why credit moved."""

    GRANT = "GRANT"  # added to the wallet
    CHARGE = "CHARGE"  # spent on a request
    EXPIRY = "EXPIRY"  # not spent in time
    ROLLOVER = "ROLLOVER"  # not spent in time, and moved on to another grant
    REFUND = "REFUND"  # given back for a charge
    ADJUSTMENT = "ADJUSTMENT"  # given or taken by an operator
    REVERSAL = "REVERSAL"  # taken back with its payment


class CorrectionKind(StrEnum):
    """What an operator did to a wallet."""

    REFUND = "REFUND"
    ADJUSTMENT = "ADJUSTMENT"
    REVERSAL = "REVERSAL"
    SUSPENSION = "SUSPENSION"
    RESUMPTION = "RESUMPTION"


class FinishReason(StrEnum):
    """Why the model's answer ended."""

    STOP = "STOP"
    LENGTH = "LENGTH"
    TOOL_CALLS = "TOOL_CALLS"
    CONTENT_FILTER = "CONTENT_FILTER"
    CREDIT_EXHAUSTED = "CREDIT_EXHAUSTED"  # the gateway cut the answer where the credit ended
    INTERRUPTED = "INTERRUPTED"  # it did not end by itself; the close cause says why


@row
class Wallet:
    """One subscriber: what it may spend is the sum of its grants' ``remaining_microcredits``."""

    subscriber_id: str
    state: WalletState
    sequence: int  # of its last transfer; 0 before the first
    create_time_us: int


@row
class Grant:
    """Credits added to a wallet. Ids with a colon are of grants that the ledger itself adds (``core.grants``)."""

    grant_id: str  # unique within the subscriber
    subscriber_id: str
    source: GrantSource
    priority: int  # lower is drawn first
    amount_microcredits: int  # > 0; only a rollover grant's grows
    remaining_microcredits: int  # neither reserved, charged, expired nor taken back
    effective_time_us: int  # inclusive
    expire_time_us: int | None  # exclusive; None: never
    create_time_us: int
    rollover_microcredits_max: int = 0  # when it expires, at most so much goes on in a rollover grant; 0: none
    rollover_seconds: int = 0  # how long that one lives, from this one's expiry on; 0: there is none
    reverse_time_us: int | None = None  # when its payment was taken back; None: it was not


@row
class Authorization:
    """A subscriber's revocable consent that an app may spend; without an app, the subscriber's own access."""

    authorization_id: str
    subscriber_id: str
    app_id: str  # "" for the subscriber's own
    channel: Channel
    cap_microcredits: int | None  # most it may ever spend; None: all the wallet has
    allowed_models: tuple[str, ...]  # empty: every model
    charged_microcredits: int  # less what was refunded
    reserved_microcredits: int  # of its open reservations
    create_time_us: int
    revoke_time_us: int | None

    def is_subscribers_own(self) -> bool:
        """Whether it may see the whole wallet."""
        return not self.app_id


@row
class ApiKey:
    """A bearer key; only its hash is stored."""

    key_id: str
    secret_hash: bytes  # SHA-256 of the whole key
    authorization_id: str
    create_time_us: int
    revoke_time_us: int | None
    prefix: str = ""  # its first characters, to tell keys apart; "" of a key that was recorded without
    expire_time_us: int | None = None  # exclusive; None: never
    last_used_time_us: int | None = None  # late by about a minute; None: not yet

    def is_expired(self, now_us: int) -> bool:
        """Whether it opens nothing any more."""
        return self.expire_time_us is not None and now_us >= self.expire_time_us


@row
class Attempt:
    """One dispatch of a request to one backend, and what it may have cost the operator there."""

    backend_id: str
    problem: str  # "" if it served the request
    prompt_tokens: int = 0  # sent to it, as the gateway counts them; 0 if it was not reached
    milliseconds: int = 0  # from the dispatch until the backend was left: what its time cost, where time is paid


@row
class Charge:
    """The immutable record of one settled request (the CDR)."""

    charge_id: str
    reservation_id: str
    subscriber_id: str
    authorization_id: str
    app_id: str
    channel: Channel
    request_id: str
    content_hash: bytes
    model_id: str
    provider_id: str
    attempts: tuple[Attempt, ...]  # in order; empty after a crash
    counting_source: CountingSource
    usage_counted: Usage  # what the charge is the price of
    usage_reported: Usage | None  # the backend's own report; None: it sent none
    usage_mismatch: bool  # the two differ by more than the model's tolerance
    rate_card_id: str
    captured_microcredits: int  # >= charged_microcredits
    charged_microcredits: int
    # What is known to have been delivered: as much as was charged; after a CRASH, what the last capture before it knew,
    # and no more than was charged: of a model that its backend counts, a capture knows a bound.
    # The rest of the charge is what an app may claim back.
    delivered_microcredits: int
    allocations: tuple[Allocation, ...]  # what paid it, in burn order
    finish_reason: FinishReason
    close_cause: CloseCause
    create_time_us: int  # of the reservation
    settle_time_us: int


@row
class Erasure:
    """The record that a subscriber was forgotten."""

    subscriber_id: str  # the pseudonym
    reason: str
    actor: str  # who did it, as they said
    erase_time_us: int
    leaves_copies: bool  # old copies may be left in unused space until the storage is compacted


@row
class GrantTerms:
    """What a grant was agreed to be, besides its amount and its expiry: the evidence beside the grant's own row."""

    source: GrantSource
    priority: int
    effective_time_us: int
    rollover_microcredits_max: int
    rollover_seconds: int


def terms_of(grant: Grant) -> GrantTerms:
    """As its row has them."""
    return GrantTerms(
        source=grant.source,
        priority=grant.priority,
        effective_time_us=grant.effective_time_us,
        rollover_microcredits_max=grant.rollover_microcredits_max,
        rollover_seconds=grant.rollover_seconds,
    )


@row
class Transfer:
    """One double-entry row."""

    subscriber_id: str
    sequence: int  # 1, 2, 3, ... without a gap within the subscriber
    kind: TransferKind
    debit_account: str
    credit_account: str
    amount_microcredits: int  # > 0
    grant_id: str  # of a rollover: the one that expired
    charge_id: str  # "" if it is of no charge
    create_time_us: int
    correction_id: str = ""  # "" if no correction moved it
    grant_expire_time_us: int | None = None  # of the grant that it adds, as agreed; None: never, or it adds none
    grant_terms: GrantTerms | None = None  # of the grant that it adds, as agreed; None: it adds none


@row
class Correction:
    """The immutable record of what an operator did to a wallet."""

    correction_id: str  # unique within the subscriber, whatever the kind
    subscriber_id: str
    kind: CorrectionKind
    charge_id: str  # of a REFUND; else ""
    grant_id: str  # of a REVERSAL; else ""
    amount_microcredits: int  # REFUND: given back; ADJUSTMENT: given, or below 0 taken; REVERSAL: taken at once; else 0
    shortfall_microcredits: int  # of a REVERSAL: what was spent or set aside; else 0
    grant_seconds: int | None  # how long a grant that it adds lives; None: for ever, or it adds none
    reason: str
    actor: str  # who did it, as they said
    create_time_us: int

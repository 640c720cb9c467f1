"""A reservation's life is this table; a transition that is not in it is an error.

delivered <= captured <= reserved at every instant (L1).
"""

from enum import StrEnum

from metergate.core.changes import row
from metergate.core.errors import TransitionInvalid
from metergate.core.usage import Usage


class ReservationState(StrEnum):
    """Where a reservation stands."""

    ACTIVE = "ACTIVE"
    SETTLED = "SETTLED"
    RELEASED = "RELEASED"


class ReservationEvent(StrEnum):
    """What can happen to a reservation."""

    CAPTURE = "CAPTURE"
    SETTLE = "SETTLE"
    RELEASE = "RELEASE"


class CloseCause(StrEnum):
    """Why a request left; every request leaves with exactly one (L6)."""

    FINISHED = "FINISHED"  # the model ended its answer, or reached max_completion_tokens
    CREDIT_EXHAUSTED = "CREDIT_EXHAUSTED"  # the wallet was empty
    CAP_REACHED = "CAP_REACHED"  # the authorization's cap was used up
    CREDIT_LIMIT_REACHED = "CREDIT_LIMIT_REACHED"  # the request's own credit_limit_microcredits
    CLIENT_CANCELLED = "CLIENT_CANCELLED"  # the app cancelled or went away
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # the app's deadline passed
    STREAM_TOO_OLD = "STREAM_TOO_OLD"  # the gateway's limit on a request's whole time
    BACKEND_ERROR = "BACKEND_ERROR"  # the backend failed, was unreachable, or answered nonsense
    BACKEND_TIMEOUT = "BACKEND_TIMEOUT"  # the backend kept the gateway waiting too long
    DRAINED = "DRAINED"  # the gateway was told to stop
    STORE_ERROR = "STORE_ERROR"  # the ledger's store failed
    GATEWAY_ERROR = "GATEWAY_ERROR"  # a defect of the gateway
    CONTENT_BLOCKED = "CONTENT_BLOCKED"  # the operator's content policy blocked what came next
    CONTENT_POLICY_ERROR = "CONTENT_POLICY_ERROR"  # the content policy failed, or took too long
    CRASH = "CRASH"  # the gateway died; settled by recovery from what was captured (L5)


TRANSITIONS: dict[tuple[ReservationState, ReservationEvent], ReservationState] = {
    (ReservationState.ACTIVE, ReservationEvent.CAPTURE): ReservationState.ACTIVE,
    (ReservationState.ACTIVE, ReservationEvent.SETTLE): ReservationState.SETTLED,
    (ReservationState.ACTIVE, ReservationEvent.RELEASE): ReservationState.RELEASED,
}


def next_state(state: ReservationState, event: ReservationEvent) -> ReservationState:
    """The state after the event; TransitionInvalid if the table has no such transition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise TransitionInvalid(state=state, event=event) from None


@row
class Owner:
    """The gateway process that runs a reservation; a new epoch for every opening of the store."""

    owner_id: str
    epoch: int


@row
class Allocation:
    """What a reservation set aside from one grant."""

    grant_id: str
    amount_microcredits: int  # > 0


@row
class Estimate:
    """What a request that its backend counts has probably used, and what that costs."""

    usage: Usage
    microcredits: int


@row
class Reservation:
    """Credit set aside for one request."""

    reservation_id: str
    subscriber_id: str
    authorization_id: str
    app_id: str  # "" for the subscriber's own key
    channel: str
    request_id: str  # unique within (subscriber, authorization)
    content_hash: bytes  # keyed hash of the request's canonical form
    owner: Owner
    model_id: str
    provider_id: str
    counting_source: str
    rate_card_id: str  # pinned for the request
    limit_microcredits: int  # the request's own ceiling; extensions never pass it
    state: ReservationState
    close_cause: CloseCause | None  # set when the state is not ACTIVE
    reserved_microcredits: int  # the sum of the allocations while ACTIVE; kept as it was at the close
    captured_microcredits: int  # durably debited so far
    captured_usage: Usage  # what captured_microcredits is the price of
    delivered_microcredits: int  # cost of what had been delivered when the last capture was asked for
    allocations: tuple[Allocation, ...]  # in burn order; empty once closed
    create_time_us: int
    close_time_us: int | None
    estimate: Estimate | None = None  # a crash is settled at this if it is lower; None: at what was captured

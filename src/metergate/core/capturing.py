"""What a capture does to its reservation's own row. A capture that the reservation covers does nothing else.

Nearly all captures are such: a store may decide them with ``debited`` and ``answer`` alone.
"""

from metergate.core.changes import changed
from metergate.core.errors import LedgerInvariantBroken
from metergate.core.operations import Capture, Captured, CaptureStatus
from metergate.core.reservation import CloseCause, Reservation, ReservationState


def is_covered(reservation: Reservation, operation: Capture) -> bool:
    """Whether the operation captures from this reservation, which is open, and needs no extension of it."""
    reserved = reservation.reserved_microcredits
    return (
        operation.target_microcredits <= reserved
        and operation.wanted_microcredits <= reserved
        and reservation.state is ReservationState.ACTIVE
        and reservation.owner == operation.owner
        and reservation.subscriber_id == operation.subscriber_id
    )


def debited(before: Reservation, operation: Capture, reserved_microcredits: int) -> Reservation:
    """The row after a capture, with so much reserved; what does not fit is not captured.

    LedgerInvariantBroken if more was delivered than is captured (L1).
    """
    target = operation.target_microcredits
    captures = before.captured_microcredits <= target <= reserved_microcredits
    captured = target if captures else before.captured_microcredits
    delivered = max(before.delivered_microcredits, operation.delivered_microcredits)
    if delivered > captured:
        raise LedgerInvariantBroken(problem=f"{delivered} microcredits delivered, only {captured} captured")
    after = changed(
        before,
        reserved_microcredits=reserved_microcredits,
        captured_microcredits=captured,
        captured_usage=operation.target_usage if captures else before.captured_usage,
        delivered_microcredits=delivered,
    )
    if captures and operation.estimate is not None:
        return changed(after, estimate=operation.estimate)
    return after


def answer(status: CaptureStatus, reservation: Reservation, refusal: CloseCause | None = None) -> Captured:
    """What a capture is told of its reservation as it stands."""
    return Captured(
        status=status,
        captured_microcredits=reservation.captured_microcredits,
        reserved_microcredits=reservation.reserved_microcredits,
        refusal=refusal,
    )

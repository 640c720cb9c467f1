"""An open reservation: what it set aside, captured and delivered."""

from metergate.core.audit.findings import DifferenceKind, Findings
from metergate.core.audit.pricing import Pricing
from metergate.core.reservation import Reservation


def check_open(reservation: Reservation, pricing: Pricing, findings: Findings) -> None:
    """Say what of it does not add up."""
    name = reservation.reservation_id
    allocated = sum(part.amount_microcredits for part in reservation.allocations)
    if allocated != reservation.reserved_microcredits:
        finding = f"reserves {reservation.reserved_microcredits} microcredits, its grants set aside {allocated}"
        findings.say(DifferenceKind.RESERVATION, name, finding)
    watermarks = (
        0,
        reservation.delivered_microcredits,
        reservation.captured_microcredits,
        reservation.reserved_microcredits,
        reservation.limit_microcredits,
    )
    if list(watermarks) != sorted(watermarks):
        finding = "breaks 0 <= delivered <= captured <= reserved <= limit: " + ", ".join(map(str, watermarks))
        findings.say(DifferenceKind.RESERVATION, name, finding)
    pricing.check(
        name,
        reservation.rate_card_id,
        reservation.model_id,
        reservation.captured_usage,
        reservation.captured_microcredits,
    )
    if reservation.estimate is not None:
        pricing.check(
            name,
            reservation.rate_card_id,
            reservation.model_id,
            reservation.estimate.usage,
            reservation.estimate.microcredits,
        )

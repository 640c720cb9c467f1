"""Recomputes one subscriber's books from their evidence and names every difference (L2, L3, L7).

Charges and transfers are streamed and aggregated by grant and authorization, so memory does not grow with their number.
"""

from metergate.core.audit.findings import AuditRound, Difference, DifferenceKind
from metergate.core.audit.subscriber_ledger import ClosedProblem, ClosedReservation, SubscriberLedger, UnreadableRow
from metergate.core.audit.whole import Audit

__all__ = [
    "Audit",
    "AuditRound",
    "ClosedProblem",
    "ClosedReservation",
    "Difference",
    "DifferenceKind",
    "SubscriberLedger",
    "UnreadableRow",
]

"""One subscriber's rows against its history."""

from collections import Counter
from collections.abc import Sequence

from metergate.core.audit.findings import DifferenceKind, Findings
from metergate.core.audit.history import History
from metergate.core.audit.open_reservations import check_open
from metergate.core.audit.pricing import Pricing
from metergate.core.audit.subscriber_ledger import SubscriberLedger
from metergate.core.grants import origin_of
from metergate.core.reservation import Reservation
from metergate.core.rows import Authorization, Grant, TransferKind


class SubscriberCheck:
    """One subscriber's sums while they are made."""

    def __init__(self, ledger: SubscriberLedger) -> None:
        self._ledger = ledger
        self.findings = Findings(ledger.wallet.subscriber_id)
        self._say = self.findings.say
        self._grants = {grant.grant_id: grant for grant in ledger.grants}
        self.history = History(ledger, self._grants, self.findings)
        self.allocated = _allocated(ledger.open_reservations)

    async def run(self) -> None:
        """Say everything that differs."""
        ledger = self._ledger
        self._check_reservations()
        for charge_id in ledger.charge_ids_without_settled_reservation:
            self._say(DifferenceKind.CHARGE, charge_id, "has no settled reservation that agrees with it")
        for charge_id in ledger.charge_ids_refunded_too_much:
            self._say(DifferenceKind.CHARGE, charge_id, "is not there, or less than what was refunded of it")
        await self.history.read()
        for grant in ledger.grants:
            self._check_grant(grant)
        for authorization in ledger.authorizations:
            self._check_authorization(authorization)
        self._check_unknown()
        self._check_wallet()
        for row in ledger.unreadable_rows:
            self._say(DifferenceKind.ROW, row.row_name, f"cannot be read: {row.problem}")

    def _check_reservations(self) -> None:
        pricing = Pricing(self._ledger.rate_cards, self.findings)
        for reservation in self._ledger.open_reservations:
            check_open(reservation, pricing, self.findings)
        for reservation_id in self._ledger.ownerless_reservation_ids:
            self._say(DifferenceKind.RESERVATION, reservation_id, "names an owner that is not there")
        for closed in self._ledger.wrong_closed_reservations:
            self._say(DifferenceKind.RESERVATION, closed.reservation_id, closed.problem)

    def _check_grant(self, grant: Grant) -> None:
        name, moved = grant.grant_id, self.history.movements
        funded, refunded = moved.funded[name], moved.refunded[name]
        allocated, remaining = self.allocated[name], grant.remaining_microcredits
        left = {kind: moved.left(kind, name) for kind in TransferKind}
        if funded != grant.amount_microcredits:
            finding = f"is of {grant.amount_microcredits} microcredits, its transfers granted {funded}"
            self._say(DifferenceKind.GRANT, name, finding)
        if remaining < 0:
            self._say(DifferenceKind.GRANT, name, f"has {remaining} microcredits remaining")
        if refunded > left[TransferKind.CHARGE]:
            finding = f"got {refunded} microcredits back, of {left[TransferKind.CHARGE]} charged"
            self._say(DifferenceKind.GRANT, name, finding)
        used = remaining + allocated + sum(left.values())
        if grant.amount_microcredits + refunded != used:
            parts = " + ".join(f"{amount} by {kind}" for kind, amount in left.items() if amount)
            finding = (
                f"is of {grant.amount_microcredits} microcredits, and {refunded} came back, but {remaining} remaining "
                f"+ {allocated} reserved{parts and ' + '}{parts} are {used}"
            )
            self._say(DifferenceKind.GRANT, name, finding)
        self._check_reversed(grant)

    def _check_reversed(self, grant: Grant) -> None:
        is_reversed = origin_of(grant.grant_id) in self.history.reversed
        if is_reversed != (grant.reverse_time_us is not None):
            finding = "is reversed without a correction" if not is_reversed else "does not say that it is reversed"
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)
        if is_reversed and grant.remaining_microcredits > 0:
            finding = f"is reversed, but has {grant.remaining_microcredits} microcredits remaining"
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)

    def _check_authorization(self, authorization: Authorization) -> None:
        name = authorization.authorization_id
        charged = self.history.charged[name] - self._ledger.refunded_microcredits.get(name, 0)
        mine = (row for row in self._ledger.open_reservations if row.authorization_id == name)
        reserved = sum(row.reserved_microcredits for row in mine)
        if authorization.charged_microcredits != charged:
            counted = authorization.charged_microcredits
            finding = f"counts {counted} microcredits charged, its charges less refunds are {charged}"
            self._say(DifferenceKind.AUTHORIZATION, name, finding)
        if authorization.reserved_microcredits != reserved:
            finding = f"counts {authorization.reserved_microcredits} microcredits reserved, in fact {reserved}"
            self._say(DifferenceKind.AUTHORIZATION, name, finding)
        cap = authorization.cap_microcredits
        if cap is not None and charged + reserved > cap:
            finding = f"may spend {cap} microcredits, but {charged} charged + {reserved} reserved are more"
            self._say(DifferenceKind.AUTHORIZATION, name, finding)

    def _check_unknown(self) -> None:
        """What is spent or set aside in the name of rows that are not there."""
        known = {row.authorization_id for row in self._ledger.authorizations}
        spenders = set(self.history.charged) | {row.authorization_id for row in self._ledger.open_reservations}
        for authorization_id in sorted(spenders - known) if not self._ledger.is_erased else ():
            self._say(DifferenceKind.AUTHORIZATION, authorization_id, "spends but is not there")
        for grant_id in sorted(set(self.allocated) - set(self._grants)):
            self._say(DifferenceKind.GRANT, grant_id, "is reserved from but is not there")

    def _check_wallet(self) -> None:
        wallet = self._ledger.wallet
        if not wallet.subscriber_id:
            self._say(DifferenceKind.WALLET, "''", "has no id")
        if wallet.sequence != self.history.sequence:
            finding = f"says its last transfer is {wallet.sequence}, in fact it is {self.history.sequence}"
            self._say(DifferenceKind.SEQUENCE, str(wallet.sequence), finding)
        if wallet.state is not self.history.state:
            finding = f"is {wallet.state}, but its corrections left it {self.history.state}"
            self._say(DifferenceKind.WALLET, wallet.subscriber_id, finding)
        moved = self.history.movements
        # What came from outside: what rolled over, and what a refund made a grant of, was there before.
        rolled = moved.left(TransferKind.ROLLOVER)
        regranted = moved.came(TransferKind.REFUND) - moved.refunded.total()
        granted = sum(grant.amount_microcredits for grant in self._ledger.grants) - rolled - regranted
        available = sum(grant.remaining_microcredits for grant in self._ledger.grants)
        reserved = sum(row.reserved_microcredits for row in self._ledger.open_reservations)
        charged = sum(self.history.charged.values()) - self.history.refunded
        expired = moved.left(TransferKind.EXPIRY)
        taken = moved.left(TransferKind.ADJUSTMENT) + moved.left(TransferKind.REVERSAL)
        if granted != available + reserved + charged + expired + taken:
            finding = (
                f"was granted {granted} microcredits, but {available} available + {reserved} reserved + {charged} "
                f"charged and not refunded + {expired} expired + {taken} taken back are "
                f"{available + reserved + charged + expired + taken}"
            )
            self._say(DifferenceKind.WALLET, wallet.subscriber_id, finding)


def _allocated(reservations: Sequence[Reservation]) -> Counter[str]:
    """What open reservations set aside, by grant."""
    allocated: Counter[str] = Counter()
    for reservation in reservations:
        for part in reservation.allocations:
            allocated[part.grant_id] += part.amount_microcredits
    return allocated

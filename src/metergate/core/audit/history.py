"""Charges, corrections and transfers, side by side: what is said to have moved, and what moved."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping

from metergate.core.accounts import RollUp
from metergate.core.audit.findings import DifferenceKind, Findings
from metergate.core.audit.matching import Matching
from metergate.core.audit.movements import Movements
from metergate.core.audit.pricing import Pricing, is_flag_right
from metergate.core.audit.subscriber_ledger import SubscriberLedger
from metergate.core.grants import origin_of
from metergate.core.rows import (
    GOODWILL_ACCOUNT,
    Charge,
    Correction,
    CorrectionKind,
    Grant,
    Transfer,
    TransferKind,
    WalletState,
)


class History:
    """One subscriber's history while it is read, and its sums."""

    def __init__(self, ledger: SubscriberLedger, grants: Mapping[str, Grant], findings: Findings) -> None:
        self._ledger = ledger
        self._grants = grants
        self._say = findings.say
        self._pricing = Pricing(ledger.rate_cards, findings)
        self._open_requests = {(row.authorization_id, row.request_id): row for row in ledger.open_reservations}
        self._charge_matching = Matching()  # by charge and grant
        self._correction_matching = Matching()  # by correction and charge
        self.movements = Movements(grants)
        self.rolled_up = RollUp()
        self.charges = 0
        self.transfers = 0
        self.charged: Counter[str] = Counter()  # by authorization
        self.refunded = 0
        self.sequence = 0
        self.reversed: set[str] = set()  # grants that a correction reversed; it reverses what carries on their credit
        self._reversals: list[Correction] = []
        self.state = WalletState.ACTIVE  # as every wallet begins; then what the last correction left

    async def read(self) -> None:
        """All are in order of recording: each charge and correction is compared with the transfers it posted."""
        groups = self._transfers_in_groups()
        async for charge in self._ledger.charges:
            self._check_charge(charge)
            for part in charge.allocations:
                self._charge_matching.state((charge.charge_id, part.grant_id), part.amount_microcredits)
            if charge.allocations:
                await anext(groups, None)
        async for _ in groups:
            pass
        async for correction in self._ledger.corrections:
            self._check_correction(correction)
        for one in self._charge_matching.end():
            finding = f"took {one.stated} microcredits of grant {one.key[1]}, its transfers moved {one.moved}"
            self._say(DifferenceKind.CHARGE, one.key[0], finding)
        for one in self._correction_matching.end():
            finding = f"is of {one.stated} microcredits, its transfers moved {one.moved}"
            self._say(DifferenceKind.CORRECTION, one.key[0], finding)
        self._check_reversals()

    async def _transfers_in_groups(self) -> AsyncIterator[None]:
        """Checks every transfer; stops after those of each charge, and reads corrections along."""
        charge_id = correction_id = ""
        async for transfer in self._ledger.transfers:
            if transfer.correction_id not in ("", correction_id):
                await self._check_next_correction()
            correction_id = transfer.correction_id
            if charge_id and (transfer.kind is not TransferKind.CHARGE or transfer.charge_id != charge_id):
                yield
            charge_id = transfer.charge_id if transfer.kind is TransferKind.CHARGE else ""
            self._check_transfer(transfer)
        if charge_id:
            yield

    async def _check_next_correction(self) -> None:
        """Reads corrections up to the next that posted transfers."""
        async for correction in self._ledger.corrections:
            self._check_correction(correction)
            if correction.amount_microcredits:
                return

    def _check_transfer(self, transfer: Transfer) -> None:
        self.transfers += 1
        self.rolled_up.add(transfer)
        name = str(transfer.sequence)
        if transfer.sequence != self.sequence + 1:
            self._say(DifferenceKind.SEQUENCE, name, f"follows {self.sequence}")
        self.sequence = transfer.sequence
        if transfer.amount_microcredits <= 0:
            self._say(DifferenceKind.TRANSFER, name, f"moves {transfer.amount_microcredits} microcredits")
        for finding in self.movements.add(transfer):
            self._say(DifferenceKind.TRANSFER, name, finding)
        if transfer.kind is TransferKind.CHARGE:
            self._charge_matching.move((transfer.charge_id, transfer.grant_id), transfer.amount_microcredits)
        if transfer.correction_id:
            is_taken = transfer.kind is TransferKind.ADJUSTMENT and transfer.credit_account == GOODWILL_ACCOUNT
            amount = -transfer.amount_microcredits if is_taken else transfer.amount_microcredits
            self._correction_matching.move((transfer.correction_id, transfer.charge_id), amount)

    def _check_correction(self, correction: Correction) -> None:
        name = correction.correction_id
        self._correction_matching.state((name, correction.charge_id), correction.amount_microcredits)
        match correction.kind:
            case CorrectionKind.REFUND:
                self.refunded += correction.amount_microcredits
            case CorrectionKind.SUSPENSION:
                self.state = WalletState.SUSPENDED
            case CorrectionKind.RESUMPTION:
                self.state = WalletState.ACTIVE
            case CorrectionKind.REVERSAL:
                self._note_reversal(correction)
        if bool(correction.charge_id) != (correction.kind is CorrectionKind.REFUND):
            self._say(DifferenceKind.CORRECTION, name, f"is a {correction.kind} of the charge {correction.charge_id!r}")

    def _note_reversal(self, correction: Correction) -> None:
        name = correction.correction_id
        if correction.shortfall_microcredits:
            self.state = WalletState.SUSPENDED
        self.reversed.add(correction.grant_id)
        grant = self._grants.get(correction.grant_id)
        if grant is None or grant.reverse_time_us != correction.create_time_us:
            self._say(DifferenceKind.CORRECTION, name, f"reverses grant {correction.grant_id}, which does not say so")
        else:
            self._reversals.append(correction)

    def _check_reversals(self) -> None:
        """After all transfers: what was lost of a grant then was lost before, as a reversed one loses nothing more."""
        lost: Counter[str] = Counter()
        for grant_id in self._grants:
            kinds = (TransferKind.EXPIRY, TransferKind.ADJUSTMENT)
            lost[origin_of(grant_id)] += sum(self.movements.left(kind, grant_id) for kind in kinds)
        for correction in self._reversals:
            grant = self._grants[correction.grant_id]
            taken, missing = correction.amount_microcredits, correction.shortfall_microcredits
            # Earlier versions counted what was lost among what is missing.
            if grant.amount_microcredits - taken - missing not in (lost[grant.grant_id], 0):
                finding = (
                    f"takes back {taken} microcredits and lacks {missing} of grant {grant.grant_id}, "
                    f"of {grant.amount_microcredits}, of which {lost[grant.grant_id]} were lost before"
                )
                self._say(DifferenceKind.CORRECTION, correction.correction_id, finding)

    def _check_charge(self, charge: Charge) -> None:
        self.charges += 1
        self.charged[charge.authorization_id] += charge.charged_microcredits
        if charge.charged_microcredits > charge.captured_microcredits:
            finding = f"is of {charge.charged_microcredits} microcredits, only {charge.captured_microcredits} captured"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        if not 0 <= charge.delivered_microcredits <= charge.charged_microcredits:
            finding = f"is of {charge.charged_microcredits} microcredits, {charge.delivered_microcredits} delivered"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        paid = sum(part.amount_microcredits for part in charge.allocations)
        if paid != charge.charged_microcredits:
            finding = f"is of {charge.charged_microcredits} microcredits, its grants paid {paid}"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        if not is_flag_right(charge):
            finding = f"is flagged {charge.usage_mismatch} for how its usage and the backend's report differ"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        again = self._open_requests.get((charge.authorization_id, charge.request_id))
        if again is not None:
            finding = f"is of a request that reservation {again.reservation_id} still runs"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        self._pricing.check(
            charge.charge_id, charge.rate_card_id, charge.model_id, charge.usage_counted, charge.charged_microcredits
        )

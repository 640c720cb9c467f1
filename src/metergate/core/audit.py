"""Recomputes one subscriber's books from their evidence and names every difference (L2, L3, L7).

Charges and transfers are streamed and aggregated by grant and authorization, so memory does not grow with their number.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.accounts import AccountBalance, RollUp
from metergate.core.errors import RateCardInvalid
from metergate.core.grants import origin_of
from metergate.core.matching import Matching
from metergate.core.movements import Movements
from metergate.core.rating import RateCard, rate_ceil
from metergate.core.reservation import CloseCause, Reservation
from metergate.core.rows import (
    GOODWILL_ACCOUNT,
    Authorization,
    Charge,
    Correction,
    CorrectionKind,
    FinishReason,
    Grant,
    Transfer,
    TransferKind,
    Wallet,
    WalletState,
)
from metergate.core.usage import STOP_TEXT_BYTES_MAX, TOKENS_WITHOUT_TEXT_MAX, TokenClass, Usage

# Differences named for one subscriber; a ledger with more is as broken as it can be.
DIFFERENCES_MAX = 1_000

# The widest tolerance of a model in tokens: reports that differ by more are flagged whatever the model.
USAGE_TOLERANCE_TOKENS_MAX = 1_000


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
class UnreadableRow:
    """A stored row that could not be read."""

    row_name: str  # its table and id: "charges/0f3c..."
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberLedger:
    """Everything the ledger holds of one subscriber, for the audit. Sequences are read once, in order, lazily."""

    wallet: Wallet
    is_erased: bool  # the subscriber was forgotten: its authorizations and keys are gone
    rate_cards: Mapping[str, RateCard]  # every one that was ever recorded, by id; the same for all subscribers
    account_balances: Mapping[str, AccountBalance]  # as rolled up, of the whole ledger; the same for all subscribers
    grants: tuple[Grant, ...]
    authorizations: tuple[Authorization, ...]
    open_reservations: tuple[Reservation, ...]
    settled_reservation_ids_without_charge: tuple[str, ...]
    closed_reservation_ids_with_allocations: tuple[str, ...]  # what is closed has nothing set aside any more
    # None at all although it is not old enough to be pruned, not SETTLED, or of other content.
    charge_ids_without_settled_reservation: tuple[str, ...]
    charge_ids_refunded_too_much: tuple[str, ...]  # by more than they were, or no charge of this subscriber's
    refunded_microcredits: Mapping[str, int]  # by authorization
    charges: AsyncIterator[Charge]  # in order of settling
    corrections: AsyncIterator[Correction]  # in order of recording
    transfers: AsyncIterator[Transfer]  # in order of sequence
    unreadable_rows: list[UnreadableRow] = field(default_factory=list)  # grows while the sequences are read


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRound:
    """What a look at some subscribers found."""

    subscribers: int  # that were audited
    different: int  # of these, those whose books differ
    differences: tuple[Difference, ...]
    account_balances: Mapping[str, AccountBalance]
    seconds: float


class Audit:
    """The audit of a whole ledger: ``check`` each subscriber, then ``check_totals``."""

    def __init__(self) -> None:
        self.subscribers = 0
        self.charges = 0
        self.transfers = 0
        # What moved into each business account less what moved out, from the transfers.
        self.business_microcredits: Counter[str] = Counter()
        self._rolled_up = RollUp()
        self._account_balances: Mapping[str, AccountBalance] = {}
        # What the operator still owes: what remains of grants and what open reservations set aside.
        self.owed_microcredits = 0

    async def check(self, ledger: SubscriberLedger) -> tuple[Difference, ...]:
        """Every difference in one subscriber's books, DIFFERENCES_MAX at most."""
        check = _SubscriberCheck(ledger)
        await check.run()
        self.subscribers += 1
        self.charges += check.charges
        self.transfers += check.transfers
        self.business_microcredits.update(check.business)
        self._rolled_up.merge(check.rolled_up)
        self._account_balances = ledger.account_balances
        self.owed_microcredits += sum(grant.remaining_microcredits for grant in ledger.grants)
        self.owed_microcredits += sum(check.allocated.values())
        return tuple(check.differences)

    def check_totals(self) -> tuple[Difference, ...]:
        """Double entry over all subscribers: what moved out of the business accounts is what subscribers still hold.

        And the balances that were rolled up meanwhile are the sums of the transfers.
        """
        differences = [*self._check_accounts()]
        balance = sum(self.business_microcredits.values()) + self.owed_microcredits
        if balance != 0:
            sentence = f"The business accounts and what subscribers hold add up to {balance} microcredits instead of 0."
            differences.append(
                Difference(kind=DifferenceKind.TOTAL, subscriber_id="", resource_id="", sentence=sentence)
            )
        return tuple(differences)

    def _check_accounts(self) -> Iterator[Difference]:
        moved, stored = self._rolled_up.balances(), self._account_balances
        for account in sorted({*moved, *stored}):
            nothing = AccountBalance(account=account, debited_microcredits=0, credited_microcredits=0)
            fact, said = moved.get(account, nothing), stored.get(account, nothing)
            if fact != said:
                sentence = (
                    f"Account {account} is rolled up as {said.debited_microcredits} microcredits debited and "
                    f"{said.credited_microcredits} credited, its transfers are {fact.debited_microcredits} and "
                    f"{fact.credited_microcredits}."
                )
                yield Difference(kind=DifferenceKind.ACCOUNT, subscriber_id="", resource_id=account, sentence=sentence)


class _SubscriberCheck:
    """One subscriber's sums while they are made."""

    def __init__(self, ledger: SubscriberLedger) -> None:
        self._ledger = ledger
        self.differences: list[Difference] = []
        self.charges = 0
        self.transfers = 0
        self.rolled_up = RollUp()
        self.allocated = _allocated(ledger.open_reservations)
        self._charged: Counter[str] = Counter()  # by authorization
        self._refunded = 0
        self._sequence = 0
        self._grants = {grant.grant_id: grant for grant in ledger.grants}
        self._movements = Movements(self._grants)
        self._open_requests = {(row.authorization_id, row.request_id): row for row in ledger.open_reservations}
        self._charge_matching = Matching()  # by charge and grant
        self._correction_matching = Matching()  # by correction and charge
        self._reversals: list[Correction] = []
        self._reversed: set[str] = set()  # grants that a correction reversed; it reverses what carries on their credit
        self._state: WalletState | None = None  # what the last correction of it left; None: there was none

    @property
    def business(self) -> Counter[str]:
        """What moved into each business account less what moved out."""
        return self._movements.business

    async def run(self) -> None:
        for reservation in self._ledger.open_reservations:
            self._check_reservation(reservation)
        for reservation_id in self._ledger.settled_reservation_ids_without_charge:
            self._say(DifferenceKind.RESERVATION, reservation_id, "is SETTLED but has no charge")
        for reservation_id in self._ledger.closed_reservation_ids_with_allocations:
            self._say(DifferenceKind.RESERVATION, reservation_id, "is closed but has credit set aside")
        for charge_id in self._ledger.charge_ids_without_settled_reservation:
            self._say(DifferenceKind.CHARGE, charge_id, "has no settled reservation that agrees with it")
        for charge_id in self._ledger.charge_ids_refunded_too_much:
            self._say(DifferenceKind.CHARGE, charge_id, "is not there, or less than what was refunded of it")
        await self._check_streams()
        self._check_reversals()
        for grant in self._ledger.grants:
            self._check_grant(grant)
        for authorization in self._ledger.authorizations:
            self._check_authorization(authorization)
        self._check_unknown()
        self._check_wallet()
        for row in self._ledger.unreadable_rows:
            self._say(DifferenceKind.ROW, row.row_name, f"cannot be read: {row.problem}")

    def _say(self, kind: DifferenceKind, resource_id: str, finding: str) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            subscriber_id = self._ledger.wallet.subscriber_id
            sentence = f"{kind.capitalize()} {resource_id} of subscriber {subscriber_id} {finding}."
            self.differences.append(
                Difference(kind=kind, subscriber_id=subscriber_id, resource_id=resource_id, sentence=sentence)
            )

    # --- charges, corrections and transfers, side by side -----------------------------------------------------------

    async def _check_streams(self) -> None:
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
        if transfer.sequence != self._sequence + 1:
            self._say(DifferenceKind.SEQUENCE, name, f"follows {self._sequence}")
        self._sequence = transfer.sequence
        if transfer.amount_microcredits <= 0:
            self._say(DifferenceKind.TRANSFER, name, f"moves {transfer.amount_microcredits} microcredits")
        for finding in self._movements.add(transfer):
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
                self._refunded += correction.amount_microcredits
            case CorrectionKind.SUSPENSION:
                self._state = WalletState.SUSPENDED
            case CorrectionKind.RESUMPTION:
                self._state = WalletState.ACTIVE
            case CorrectionKind.REVERSAL:
                self._note_reversal(correction)
        if bool(correction.charge_id) != (correction.kind is CorrectionKind.REFUND):
            self._say(DifferenceKind.CORRECTION, name, f"is a {correction.kind} of the charge {correction.charge_id!r}")

    def _note_reversal(self, correction: Correction) -> None:
        name = correction.correction_id
        if correction.shortfall_microcredits:
            self._state = WalletState.SUSPENDED
        self._reversed.add(correction.grant_id)
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
            lost[origin_of(grant_id)] += sum(self._movements.left(kind, grant_id) for kind in kinds)
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
        self._charged[charge.authorization_id] += charge.charged_microcredits
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
        if not _is_flag_right(charge):
            finding = f"is flagged {charge.usage_mismatch} for how its usage and the backend's report differ"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        again = self._open_requests.get((charge.authorization_id, charge.request_id))
        if again is not None:
            finding = f"is of a request that reservation {again.reservation_id} still runs"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        self._check_price(
            charge.charge_id, charge.rate_card_id, charge.model_id, charge.usage_counted, charge.charged_microcredits
        )

    def _check_price(self, name: str, rate_card_id: str, model_id: str, usage: Usage, amount: int) -> None:
        """What was charged, or captured so far, is the price of its usage at the model's own rate card."""
        card = self._ledger.rate_cards.get(rate_card_id)
        if card is None:
            self._say(DifferenceKind.PRICE, name, f"names the rate card {rate_card_id}, unknown")
            return
        if card.model_id != model_id:
            finding = f"is for {model_id} at the rate card {card.rate_card_id} of {card.model_id}"
            self._say(DifferenceKind.PRICE, name, finding)
        try:
            price = rate_ceil(usage, card)
        except RateCardInvalid as exc:
            self._say(DifferenceKind.PRICE, name, f"cannot be rated: {exc}")
            return
        if price != amount:
            self._say(DifferenceKind.PRICE, name, f"is of {amount} microcredits, its usage costs {price}")

    # --- the rows ---------------------------------------------------------------------------------------------------

    def _check_reservation(self, reservation: Reservation) -> None:
        name = reservation.reservation_id
        allocated = sum(part.amount_microcredits for part in reservation.allocations)
        if allocated != reservation.reserved_microcredits:
            finding = f"reserves {reservation.reserved_microcredits} microcredits, its grants set aside {allocated}"
            self._say(DifferenceKind.RESERVATION, name, finding)
        watermarks = (
            0,
            reservation.delivered_microcredits,
            reservation.captured_microcredits,
            reservation.reserved_microcredits,
            reservation.limit_microcredits,
        )
        if list(watermarks) != sorted(watermarks):
            finding = "breaks 0 <= delivered <= captured <= reserved <= limit: " + ", ".join(map(str, watermarks))
            self._say(DifferenceKind.RESERVATION, name, finding)
        self._check_price(
            name,
            reservation.rate_card_id,
            reservation.model_id,
            reservation.captured_usage,
            reservation.captured_microcredits,
        )
        if reservation.estimate is not None:
            self._check_price(
                name,
                reservation.rate_card_id,
                reservation.model_id,
                reservation.estimate.usage,
                reservation.estimate.microcredits,
            )

    def _check_grant(self, grant: Grant) -> None:
        name, moved = grant.grant_id, self._movements
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
        is_reversed = origin_of(grant.grant_id) in self._reversed
        if is_reversed != (grant.reverse_time_us is not None):
            finding = "is reversed without a correction" if not is_reversed else "does not say that it is reversed"
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)
        if is_reversed and grant.remaining_microcredits > 0:
            finding = f"is reversed, but has {grant.remaining_microcredits} microcredits remaining"
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)

    def _check_authorization(self, authorization: Authorization) -> None:
        name = authorization.authorization_id
        charged = self._charged[name] - self._ledger.refunded_microcredits.get(name, 0)
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
        spenders = set(self._charged) | {row.authorization_id for row in self._ledger.open_reservations}
        for authorization_id in sorted(spenders - known) if not self._ledger.is_erased else ():
            self._say(DifferenceKind.AUTHORIZATION, authorization_id, "spends but is not there")
        for grant_id in sorted(set(self.allocated) - set(self._grants)):
            self._say(DifferenceKind.GRANT, grant_id, "is reserved from but is not there")

    def _check_wallet(self) -> None:
        wallet = self._ledger.wallet
        if not wallet.subscriber_id:
            self._say(DifferenceKind.WALLET, "''", "has no id")
        if wallet.sequence != self._sequence:
            finding = f"says its last transfer is {wallet.sequence}, in fact it is {self._sequence}"
            self._say(DifferenceKind.SEQUENCE, str(wallet.sequence), finding)
        if self._state not in (None, wallet.state):
            finding = f"is {wallet.state}, but was left {self._state} by the last correction"
            self._say(DifferenceKind.WALLET, wallet.subscriber_id, finding)
        moved = self._movements
        # What came from outside: what rolled over, and what a refund made a grant of, was there before.
        rolled = moved.left(TransferKind.ROLLOVER)
        regranted = moved.came(TransferKind.REFUND) - moved.refunded.total()
        granted = sum(grant.amount_microcredits for grant in self._ledger.grants) - rolled - regranted
        available = sum(grant.remaining_microcredits for grant in self._ledger.grants)
        reserved = sum(row.reserved_microcredits for row in self._ledger.open_reservations)
        charged = sum(self._charged.values()) - self._refunded
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


def _is_flag_right(charge: Charge) -> bool:
    """Whether usage_mismatch can be as it is, whatever tolerance the model had."""
    if charge.usage_reported is None:
        return not charge.usage_mismatch
    counted, reported = _prompt_and_answer(charge.usage_counted), _prompt_and_answer(charge.usage_reported)
    prompt, answer = (other - one for one, other in zip(counted, reported, strict=True))
    if charge.usage_mismatch:
        return (prompt, answer) != (0, 0)
    if charge.close_cause is not CloseCause.FINISHED:
        return True
    if answer > 0 and charge.finish_reason is FinishReason.LENGTH:
        answer = 0  # if the gateway cut the answer, the report is of more than was delivered
    answer -= min(max(answer, 0), TOKENS_WITHOUT_TEXT_MAX + STOP_TEXT_BYTES_MAX)
    return max(abs(prompt), abs(answer)) <= USAGE_TOLERANCE_TOKENS_MAX


def _prompt_and_answer(usage: Usage) -> tuple[int, int]:
    prompt = usage.get(TokenClass.PROMPT) + usage.get(TokenClass.CACHED_PROMPT)
    return prompt, usage.total() - prompt

"""Recomputes one subscriber's books from their evidence and names every difference (L2, L3, L7).

Charges and transfers are streamed and aggregated by grant and authorization, so memory does not grow with their number.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from metergate.core.accounts import AccountBalance, RollUp
from metergate.core.errors import RateCardInvalid
from metergate.core.grants import is_expired
from metergate.core.rating import RateCard, rate_ceil
from metergate.core.reservation import Reservation
from metergate.core.rows import (
    BREAKAGE_ACCOUNT,
    GOODWILL_ACCOUNT,
    PAYMENTS_ACCOUNT,
    REVENUE_ACCOUNT,
    Authorization,
    Charge,
    Grant,
    Transfer,
    TransferKind,
    Wallet,
    funding_account,
    grant_account,
)
from metergate.core.usage import Usage

# Differences named for one subscriber; a ledger with more is as broken as it can be.
DIFFERENCES_MAX = 1_000

# Charges whose transfers were not read yet, or the other way round. The two streams are in the same order, so in an
# intact ledger there are two at most; a broken one must not fill the memory.
UNMATCHED_MAX = 10_000

# Which business accounts each kind of transfer may move credit from or to, on the other side of the grant.
BUSINESS_ACCOUNTS = {
    TransferKind.GRANT: (PAYMENTS_ACCOUNT, GOODWILL_ACCOUNT),
    TransferKind.CHARGE: (REVENUE_ACCOUNT,),
    TransferKind.EXPIRY: (BREAKAGE_ACCOUNT,),
}


class DifferenceKind(StrEnum):
    """What does not add up."""

    SEQUENCE = "SEQUENCE"
    TRANSFER = "TRANSFER"
    GRANT = "GRANT"
    AUTHORIZATION = "AUTHORIZATION"
    RESERVATION = "RESERVATION"
    CHARGE = "CHARGE"
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
    # None at all although it is not old enough to be pruned, not SETTLED, or of other content.
    charge_ids_without_settled_reservation: tuple[str, ...]
    charges: AsyncIterator[Charge]  # in order of settling
    transfers: AsyncIterator[Transfer]  # in order of sequence
    unreadable_rows: list[UnreadableRow] = field(default_factory=list)  # grows while charges and transfers are read


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
        self.business: Counter[str] = Counter()
        self.rolled_up = RollUp()
        self.allocated = _allocated(ledger.open_reservations)
        self._moved: dict[TransferKind, Counter[str]] = {kind: Counter() for kind in TransferKind}  # by grant
        self._charged: Counter[str] = Counter()  # by authorization
        self._sequence = 0
        self._grants = {grant.grant_id: grant for grant in ledger.grants}
        self._open_requests = {(row.authorization_id, row.request_id): row for row in ledger.open_reservations}
        self._unmatched: dict[str, tuple[int, int]] = {}  # by charge: what it says, what its transfers moved

    async def run(self) -> None:
        for reservation in self._ledger.open_reservations:
            self._check_reservation(reservation)
        for reservation_id in self._ledger.settled_reservation_ids_without_charge:
            self._say(DifferenceKind.RESERVATION, reservation_id, "is SETTLED but has no charge")
        for charge_id in self._ledger.charge_ids_without_settled_reservation:
            self._say(DifferenceKind.CHARGE, charge_id, "has no settled reservation that agrees with it")
        await self._check_streams()
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

    # --- charges and transfers, side by side ------------------------------------------------------------------------

    async def _check_streams(self) -> None:
        """Both streams are in order of settling: each charge is compared with the transfers it posted."""
        groups = self._transfers_by_charge()
        async for charge in self._ledger.charges:
            self._check_charge(charge)
            if charge.charged_microcredits > 0:
                self._match(charge.charge_id, charge.charged_microcredits, 0)
                group = await anext(groups, None)
                if group is not None:
                    self._match(group[0], 0, group[1])
        async for charge_id, moved in groups:
            self._match(charge_id, 0, moved)
        for charge_id, (charged, moved) in self._unmatched.items():
            self._say_unmatched(charge_id, charged, moved)

    def _match(self, charge_id: str, charged: int, moved: int) -> None:
        before_charged, before_moved = self._unmatched.pop(charge_id, (0, 0))
        after = (before_charged + charged, before_moved + moved)
        if after[0] == after[1]:
            return
        if len(self._unmatched) < UNMATCHED_MAX:
            self._unmatched[charge_id] = after
        else:
            self._say_unmatched(charge_id, *after)

    def _say_unmatched(self, charge_id: str, charged: int, moved: int) -> None:
        self._say(DifferenceKind.CHARGE, charge_id, f"is of {charged} microcredits, its transfers moved {moved}")

    async def _transfers_by_charge(self) -> AsyncIterator[tuple[str, int]]:
        """Checks every transfer; what consecutive CHARGE transfers of one charge moved together."""
        charge_id, moved = "", 0
        async for transfer in self._ledger.transfers:
            self._check_transfer(transfer)
            if transfer.kind is not TransferKind.CHARGE:
                continue
            if transfer.charge_id != charge_id:
                if moved:
                    yield charge_id, moved
                charge_id, moved = transfer.charge_id, 0
            moved += transfer.amount_microcredits
        if moved:
            yield charge_id, moved

    def _check_transfer(self, transfer: Transfer) -> None:
        self.transfers += 1
        self.rolled_up.add(transfer)
        name = str(transfer.sequence)
        if transfer.sequence != self._sequence + 1:
            self._say(DifferenceKind.SEQUENCE, name, f"follows {self._sequence}")
        self._sequence = transfer.sequence
        if transfer.amount_microcredits <= 0:
            self._say(DifferenceKind.TRANSFER, name, f"moves {transfer.amount_microcredits} microcredits")
        is_grant = transfer.kind is TransferKind.GRANT
        accounts = (transfer.debit_account, transfer.credit_account)
        business, mine = accounts if is_grant else reversed(accounts)
        if mine != grant_account(transfer.grant_id) or business not in BUSINESS_ACCOUNTS[transfer.kind]:
            self._say(DifferenceKind.TRANSFER, name, f"moves a {transfer.kind} from {accounts[0]} to {accounts[1]}")
        if bool(transfer.charge_id) != (transfer.kind is TransferKind.CHARGE):
            self._say(DifferenceKind.TRANSFER, name, f"is a {transfer.kind} of the charge {transfer.charge_id!r}")
        grant = self._grants.get(transfer.grant_id)
        if grant is None:
            self._say(DifferenceKind.TRANSFER, name, f"moves credit of grant {transfer.grant_id}, which is not there")
        else:
            self._moved[transfer.kind][transfer.grant_id] += transfer.amount_microcredits
            self._check_transfer_of(grant, transfer)
        if business in BUSINESS_ACCOUNTS[transfer.kind]:
            self.business[business] += -transfer.amount_microcredits if is_grant else transfer.amount_microcredits

    def _check_transfer_of(self, grant: Grant, transfer: Transfer) -> None:
        name = str(transfer.sequence)
        if transfer.kind is TransferKind.GRANT and transfer.debit_account != funding_account(grant.source):
            finding = f"books grant {grant.grant_id}, a {grant.source}, on {transfer.debit_account}"
            self._say(DifferenceKind.TRANSFER, name, finding)
        if transfer.kind is TransferKind.EXPIRY and not is_expired(grant, transfer.create_time_us):
            self._say(DifferenceKind.TRANSFER, name, f"takes what grant {grant.grant_id} holds before it expires")

    def _check_charge(self, charge: Charge) -> None:
        self.charges += 1
        self._charged[charge.authorization_id] += charge.charged_microcredits
        if charge.charged_microcredits > charge.captured_microcredits:
            finding = f"is of {charge.charged_microcredits} microcredits, only {charge.captured_microcredits} captured"
            self._say(DifferenceKind.CHARGE, charge.charge_id, finding)
        if not 0 <= charge.delivered_microcredits <= charge.charged_microcredits:
            finding = f"is of {charge.charged_microcredits} microcredits, {charge.delivered_microcredits} delivered"
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

    def _check_grant(self, grant: Grant) -> None:
        granted = self._moved[TransferKind.GRANT][grant.grant_id]
        charged = self._moved[TransferKind.CHARGE][grant.grant_id]
        expired = self._moved[TransferKind.EXPIRY][grant.grant_id]
        allocated, remaining = self.allocated[grant.grant_id], grant.remaining_microcredits
        if granted != grant.amount_microcredits:
            finding = f"is of {grant.amount_microcredits} microcredits, its transfers granted {granted}"
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)
        if remaining < 0:
            self._say(DifferenceKind.GRANT, grant.grant_id, f"has {remaining} microcredits remaining")
        if grant.amount_microcredits != remaining + allocated + charged + expired:
            finding = (
                f"is of {grant.amount_microcredits} microcredits, but {remaining} remaining + {allocated} reserved "
                f"+ {charged} charged + {expired} expired are {remaining + allocated + charged + expired}"
            )
            self._say(DifferenceKind.GRANT, grant.grant_id, finding)

    def _check_authorization(self, authorization: Authorization) -> None:
        name = authorization.authorization_id
        charged = self._charged[name]
        mine = (row for row in self._ledger.open_reservations if row.authorization_id == name)
        reserved = sum(row.reserved_microcredits for row in mine)
        if authorization.charged_microcredits != charged:
            finding = f"counts {authorization.charged_microcredits} microcredits charged, its charges are {charged}"
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
        granted = sum(grant.amount_microcredits for grant in self._ledger.grants)
        available = sum(grant.remaining_microcredits for grant in self._ledger.grants)
        reserved = sum(row.reserved_microcredits for row in self._ledger.open_reservations)
        charged = sum(self._charged.values())
        expired = sum(self._moved[TransferKind.EXPIRY].values())
        if granted != available + reserved + charged + expired:
            finding = (
                f"was granted {granted} microcredits, but {available} available + {reserved} reserved + {charged} "
                f"charged + {expired} expired are {available + reserved + charged + expired}"
            )
            self._say(DifferenceKind.WALLET, wallet.subscriber_id, finding)


def _allocated(reservations: Sequence[Reservation]) -> Counter[str]:
    """What open reservations set aside, by grant."""
    allocated: Counter[str] = Counter()
    for reservation in reservations:
        for part in reservation.allocations:
            allocated[part.grant_id] += part.amount_microcredits
    return allocated

"""What transfers move between: which accounts each kind may name, and what they moved in and out of every grant."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields

from metergate.core.grants import is_expired, rollover_expire_time, rollover_grant_id
from metergate.core.rows import (
    BREAKAGE_ACCOUNT,
    GOODWILL_ACCOUNT,
    PAYMENTS_ACCOUNT,
    REVENUE_ACCOUNT,
    REVERSALS_ACCOUNT,
    Grant,
    GrantSource,
    GrantTerms,
    Transfer,
    TransferKind,
    funding_account,
    grant_account,
    terms_of,
)

# Which business accounts each kind of transfer may take credit from, and give it to. Between two grants: neither.
SOURCES = {
    TransferKind.GRANT: (PAYMENTS_ACCOUNT, GOODWILL_ACCOUNT),
    TransferKind.ADJUSTMENT: (GOODWILL_ACCOUNT,),
    TransferKind.REFUND: (REVENUE_ACCOUNT,),
}
DESTINATIONS = {
    TransferKind.CHARGE: (REVENUE_ACCOUNT,),
    TransferKind.EXPIRY: (BREAKAGE_ACCOUNT,),
    TransferKind.ADJUSTMENT: (GOODWILL_ACCOUNT,),
    TransferKind.REVERSAL: (REVERSALS_ACCOUNT,),
}

OF_CHARGES = frozenset({TransferKind.CHARGE, TransferKind.REFUND})
OF_CORRECTIONS = frozenset({TransferKind.ADJUSTMENT, TransferKind.REFUND})
PERHAPS_OF_CORRECTIONS = OF_CORRECTIONS | {TransferKind.REVERSAL}


class Movements:
    """The sums of one subscriber's transfers, which are added in order; ``add`` says what is wrong with each."""

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        self._grants = grants
        self.business: Counter[str] = Counter()  # what moved into each account less what moved out
        self.funded: Counter[str] = Counter()  # by grant: what made it
        self.refunded: Counter[str] = Counter()  # by grant: what came back to it
        self._left: dict[TransferKind, Counter[str]] = {kind: Counter() for kind in TransferKind}  # by grant
        self._moved_in: Counter[TransferKind] = Counter()  # from business accounts

    def left(self, kind: TransferKind, grant_id: str | None = None) -> int:
        """What left a grant, or all, by transfers of a kind."""
        return self._left[kind].total() if grant_id is None else self._left[kind][grant_id]

    def came(self, kind: TransferKind) -> int:
        """What came from business accounts by transfers of a kind."""
        return self._moved_in[kind]

    def add(self, transfer: Transfer) -> Iterator[str]:
        """Count a transfer; what is wrong with it, as the rest of a sentence."""
        if bool(transfer.charge_id) != (transfer.kind in OF_CHARGES):
            yield f"is a {transfer.kind} of the charge {transfer.charge_id!r}"
        names_correction = bool(transfer.correction_id)
        if names_correction not in (transfer.kind in OF_CORRECTIONS, transfer.kind in PERHAPS_OF_CORRECTIONS):
            yield f"is a {transfer.kind} of the correction {transfer.correction_id!r}"
        grant = self._grants.get(transfer.grant_id)
        if grant is None:
            yield f"moves credit of grant {transfer.grant_id}, which is not there"
        mine = grant_account(transfer.grant_id)
        if transfer.kind is TransferKind.ROLLOVER:
            yield from self._add_rollover(transfer, grant)
        elif transfer.credit_account == mine and transfer.debit_account in SOURCES.get(transfer.kind, ()):
            yield from self._add_in(transfer, grant)
        elif transfer.debit_account == mine and transfer.credit_account in DESTINATIONS.get(transfer.kind, ()):
            yield from self._add_out(transfer, grant)
        else:
            yield f"moves a {transfer.kind} from {transfer.debit_account} to {transfer.credit_account}"

    # --- into a grant -----------------------------------------------------------------------------------------------

    def _add_in(self, transfer: Transfer, grant: Grant | None) -> Iterator[str]:
        amount = transfer.amount_microcredits
        self.business[transfer.debit_account] -= amount
        self._moved_in[transfer.kind] += amount
        if grant is None:
            return
        # The first refund that reaches a refund grant makes it; a later one gives back what it paid.
        is_funding = transfer.kind is not TransferKind.REFUND or (
            grant.source is GrantSource.REFUND and not self.funded[grant.grant_id]
        )
        if is_funding:
            yield from self._fund(transfer, grant)
            if transfer.kind is TransferKind.GRANT and transfer.debit_account != funding_account(grant.source):
                yield f"books grant {grant.grant_id}, a {grant.source}, on {transfer.debit_account}"
            return
        self.refunded[grant.grant_id] += amount
        if (transfer.grant_expire_time_us, transfer.grant_terms) != (None, None):
            yield "says what a grant is, but makes none"
        if grant.reverse_time_us is None and is_expired(grant, transfer.create_time_us):
            yield f"gives back to grant {grant.grant_id} after it expired"

    def _fund(self, transfer: Transfer, grant: Grant) -> Iterator[str]:
        self.funded[grant.grant_id] += transfer.amount_microcredits
        if transfer.grant_expire_time_us != grant.expire_time_us:
            agreed, says = transfer.grant_expire_time_us, grant.expire_time_us
            yield f"makes grant {grant.grant_id} expire at {agreed}, but it says {says}"
        if transfer.grant_terms is None:
            yield f"makes grant {grant.grant_id} without its terms"
        elif transfer.grant_terms != terms_of(grant):
            terms, row = transfer.grant_terms, terms_of(grant)
            changed = [
                f"{field.name} {getattr(terms, field.name)}, but it says {getattr(row, field.name)}"
                for field in fields(GrantTerms)
                if getattr(terms, field.name) != getattr(row, field.name)
            ]
            yield f"makes grant {grant.grant_id} of {'; '.join(changed)}"

    # --- out of a grant ---------------------------------------------------------------------------------------------

    def _add_out(self, transfer: Transfer, grant: Grant | None) -> Iterator[str]:
        self.business[transfer.credit_account] += transfer.amount_microcredits
        if (transfer.grant_expire_time_us, transfer.grant_terms) != (None, None):
            yield "says what a grant is, but makes none"
        if grant is None:
            return
        self._left[transfer.kind][grant.grant_id] += transfer.amount_microcredits
        if transfer.kind is TransferKind.EXPIRY:
            if not is_expired(grant, transfer.create_time_us):
                yield f"takes what grant {grant.grant_id} holds before it expires"
            elif self._rolls_over(grant, transfer.create_time_us):
                yield f"lets expire what of grant {grant.grant_id} rolls over"
        if transfer.kind is TransferKind.REVERSAL and grant.reverse_time_us is None:
            yield f"takes back grant {grant.grant_id}, which was not reversed"

    def _rolls_over(self, grant: Grant, time_us: int) -> bool:
        """Whether its rule leaves room at that time."""
        rolled = self.funded[rollover_grant_id(grant.grant_id)]
        return rolled < grant.rollover_microcredits_max and time_us < rollover_expire_time(grant)

    # --- from grant to grant ----------------------------------------------------------------------------------------

    def _add_rollover(self, transfer: Transfer, grant: Grant | None) -> Iterator[str]:
        rollover_id = rollover_grant_id(transfer.grant_id)
        accounts = (transfer.debit_account, transfer.credit_account)
        if accounts != (grant_account(transfer.grant_id), grant_account(rollover_id)):
            yield f"moves a {transfer.kind} from {accounts[0]} to {accounts[1]}"
            return
        rollover = self._grants.get(rollover_id)
        if rollover is None:
            yield f"moves credit to grant {rollover_id}, which is not there"
        if grant is None or rollover is None:
            return
        self._left[transfer.kind][grant.grant_id] += transfer.amount_microcredits
        yield from self._fund(transfer, rollover)
        if not is_expired(grant, transfer.create_time_us):
            yield f"moves what grant {grant.grant_id} holds before it expires"
        elif rollover.expire_time_us != rollover_expire_time(grant) or is_expired(rollover, transfer.create_time_us):
            yield f"moves credit to grant {rollover_id} for another time than the rule of {grant.grant_id} says"
        if self.funded[rollover_id] > grant.rollover_microcredits_max:
            rolled, most = self.funded[rollover_id], grant.rollover_microcredits_max
            yield f"makes {rolled} microcredits of grant {grant.grant_id} roll over, at most {most} may"

"""The audit of a whole ledger: every subscriber, and then double entry over all of them."""

from collections import Counter
from collections.abc import Iterator, Mapping

from metergate.core.accounts import AccountBalance, RollUp
from metergate.core.audit.findings import Difference, DifferenceKind
from metergate.core.audit.subscriber import SubscriberCheck
from metergate.core.audit.subscriber_ledger import SubscriberLedger


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
        # What all open reservations have reserved, by the rows and as counted beside them.
        self._reserved_microcredits = self._reserved_counted_microcredits = 0
        # What the operator still owes: what remains of grants and what open reservations set aside.
        self.owed_microcredits = 0

    async def check(self, ledger: SubscriberLedger) -> tuple[Difference, ...]:
        """Every difference in one subscriber's books, DIFFERENCES_MAX at most."""
        check = SubscriberCheck(ledger)
        await check.run()
        self.subscribers += 1
        self.charges += check.history.charges
        self.transfers += check.history.transfers
        self.business_microcredits.update(check.history.movements.business)
        self._rolled_up.merge(check.history.rolled_up)
        self._account_balances = ledger.account_balances
        self._reserved_microcredits += sum(row.reserved_microcredits for row in ledger.open_reservations)
        self._reserved_counted_microcredits = ledger.reserved_microcredits
        self.owed_microcredits += sum(grant.remaining_microcredits for grant in ledger.grants)
        self.owed_microcredits += sum(check.allocated.values())
        return tuple(check.findings.differences)

    def check_totals(self) -> tuple[Difference, ...]:
        """Double entry over all subscribers: what moved out of the business accounts is what subscribers still hold.

        And the balances that were rolled up meanwhile are the sums of the transfers, and no open reservation is gone.
        """
        differences = [*self._check_accounts()]
        fact, said = self._reserved_microcredits, self._reserved_counted_microcredits
        if fact != said:
            sentence = f"Open reservations have {fact} microcredits reserved, of {said} that were."
            differences.append(
                Difference(kind=DifferenceKind.RESERVATION, subscriber_id="", resource_id="", sentence=sentence)
            )
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

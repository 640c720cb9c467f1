"""Balances of business accounts: rolled up by day from transfers, so that no row is hot (a balance row would be).

The accounts of all grants together are one account here, GRANTS_ACCOUNT: what the operator owes its subscribers. Every
transfer debits one account and credits another, so over all accounts debits and credits are equal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from metergate.core.rows import Transfer

# The colon of a grant's own account keeps the two apart.
GRANTS_ACCOUNT = "grants"
_GRANT_PREFIX = "grant:"

DAY_US = 86_400_000_000

AccountDayKey = tuple[str, int]  # account, day since the epoch (UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBalance:
    """What moved out of an account and into it."""

    account: str
    debited_microcredits: int
    credited_microcredits: int

    @property
    def balance_microcredits(self) -> int:
        """Credits less debits: above zero for what was earned or is owed, below zero for what was paid in or given."""
        return self.credited_microcredits - self.debited_microcredits


def rolled_up_account(account: str) -> str:
    """The account under which a transfer's account is rolled up."""
    return GRANTS_ACCOUNT if account.startswith(_GRANT_PREFIX) else account


def roll_up(transfers: Iterable[Transfer]) -> Mapping[AccountDayKey, tuple[int, int]]:
    """Debited and credited microcredits by account and day."""
    days: dict[AccountDayKey, tuple[int, int]] = {}
    for transfer in transfers:
        day, amount = transfer.create_time_us // DAY_US, transfer.amount_microcredits
        debit = (rolled_up_account(transfer.debit_account), day)
        debited, credited = days.get(debit, (0, 0))
        days[debit] = (debited + amount, credited)
        credit = (rolled_up_account(transfer.credit_account), day)
        debited, credited = days.get(credit, (0, 0))
        days[credit] = (debited, credited + amount)
    return days


class RollUp:
    """Sums of transfers by account, made one transfer at a time."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[int, int]] = {}

    def add(self, transfer: Transfer) -> None:
        """Count a transfer."""
        amount = transfer.amount_microcredits
        self._move(rolled_up_account(transfer.debit_account), amount, 0)
        self._move(rolled_up_account(transfer.credit_account), 0, amount)

    def merge(self, other: "RollUp") -> None:
        """Count what another one has counted."""
        for account, balance in other.balances().items():
            self._move(account, balance.debited_microcredits, balance.credited_microcredits)

    def balances(self) -> dict[str, AccountBalance]:
        """By account."""
        return {
            account: AccountBalance(account=account, debited_microcredits=debited, credited_microcredits=credited)
            for account, (debited, credited) in sorted(self._moved.items())
        }

    def _move(self, account: str, debited: int, credited: int) -> None:
        before = self._moved.get(account, (0, 0))
        self._moved[account] = (before[0] + debited, before[1] + credited)

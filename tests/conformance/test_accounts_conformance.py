"""Every LedgerStore rolls up the balances of business accounts by day, in the commit of the transfers themselves."""

from collections.abc import Mapping

from ledger_rows import DAY_US, NOW_US, a_grant, a_settle, a_wallet, open_wallet, reserve

from metergate.core.accounts import AccountBalance
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.rows import GrantSource
from metergate.ports import Days, LedgerStore

TODAY = NOW_US // DAY_US


def moved(balances: Mapping[str, AccountBalance]) -> dict[str, tuple[int, int]]:
    return {name: (row.debited_microcredits, row.credited_microcredits) for name, row in balances.items()}


async def test_every_movement_is_rolled_up_on_both_of_its_accounts(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=1_000_001), a_grant("gift", 5, source=GrantSource.GIFT))
    await reserve(store)
    await store.settle(a_settle(30, owner=store.owner, captured=40))
    assert moved(await store.account_balances()) == {
        "goodwill": (5, 0),
        "grants": (30, 1_000_006),
        "payments": (1_000_001, 0),
        "revenue": (0, 30),
    }


async def test_what_expires_is_breakage(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("old", 50, expire_time_us=NOW_US - 1), a_grant("new", 7))
    balances = await store.account_balances()
    assert moved(balances)["breakage"] == (0, 50)
    assert sum(row.balance_microcredits for row in balances.values()) == 0


async def test_balances_can_be_had_of_some_days_only(store: LedgerStore) -> None:
    await open_wallet(store, a_grant("today", 5), a_grant("tomorrow", 70, create_time_us=NOW_US + DAY_US))
    assert moved(await store.account_balances(Days(first=TODAY + 1)))["payments"] == (70, 0)
    assert moved(await store.account_balances(Days(last=TODAY)))["payments"] == (5, 0)
    assert await store.account_balances(Days(first=TODAY + 2)) == {}


async def test_a_day_may_sum_up_to_more_than_64_bits(store: LedgerStore) -> None:
    for number in range(5):
        await store.add_subscriber(a_wallet(f"subscriber-{number}"))
        await store.add_grant(a_grant("largest", AMOUNT_MICROCREDITS_MAX, f"subscriber-{number}"))
    assert (await store.account_balances())["payments"].debited_microcredits == 5 * AMOUNT_MICROCREDITS_MAX


async def test_an_operation_that_is_asked_again_is_rolled_up_once(store: LedgerStore) -> None:
    await open_wallet(store, a_grant(amount=10), a_grant(amount=10))
    assert moved(await store.account_balances()) == {"grants": (0, 10), "payments": (10, 0)}

"""A subscriber that is forgotten: what names it is gone from everywhere, what it was charged stays and adds up."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import (
    DAY_US,
    NOW_US,
    a_capture,
    a_consent,
    a_grant,
    a_key,
    a_refund,
    a_reserve,
    a_reversal,
    a_settle,
    a_wallet,
    an_adjustment,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.errors import MetergateError, RequestInvalid, ReservationsOpen, ResourceNotFound
from metergate.core.operations import EraseSubscriber
from metergate.ports import ChargeFilter, LedgerStore, TransferFilter
from metergate.stores.sqlite import SqliteLedgerStore

PSEUDONYM = "erased-0f3c"


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    clock = FakeClock(NOW_US)
    opened: LedgerStore = (
        MemoryLedgerStore(clock=clock)
        if request.param == "memory"
        else await SqliteLedgerStore.open(tmp_path / "ledger.db", clock=clock, owner_id="gateway-1", create=True)
    )
    yield opened
    assert await differences(opened) == [], "every test leaves books that add up"
    await opened.close()


def an_erasure(**values: object) -> EraseSubscriber:
    defaults = {
        "subscriber_id": "alice",
        "pseudonym": PSEUDONYM,
        "reason": "she asked",
        "actor": "ops",
        "now_us": NOW_US + 9,
    }
    return EraseSubscriber(**(defaults | values))  # type: ignore[arg-type]


async def live(store: LedgerStore) -> None:
    """Alice with all there can be: grants of every kind, charges, a refund, an adjustment, a reversal, a key."""
    rolling: dict[str, Any] = {"rollover_microcredits_max": 20, "rollover_seconds": 9 * DAY_US // 1_000_000}
    await open_wallet(
        store,
        a_grant("of-alice", 1_000),
        a_grant("ends", 50, expire_time_us=NOW_US - 1, priority=0, **rolling),
        a_grant("paid", 70, priority=99),
    )
    await store.add_key(a_key())
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob"))
    await store.add_grant(a_grant("of-bob", 10, "bob"))
    for name in ("res-1", "res-2"):
        await reserve(store, name, request_id=f"alice asked {name}")
        await store.settle(a_settle(30, name, owner=store.owner, captured=40))
    await store.refund(a_refund(5, correction_id="alice-complained"))
    await store.adjust(an_adjustment(7, "sorry-alice", reason="sorry, alice"))
    await store.reverse(a_reversal("paid", "alice-took-back"))


async def test_charges_and_transfers_stay_under_a_pseudonym_and_add_up(store: LedgerStore) -> None:
    await live(store)
    before = await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)
    balances = await store.account_balances()
    assert (await store.erase_subscriber(an_erasure())).subscriber_id == PSEUDONYM
    after = await store.list_transfers(PSEUDONYM, TransferFilter(), cursor=None, size=99)
    assert [row.amount_microcredits for row in after.rows] == [row.amount_microcredits for row in before.rows]
    assert await store.account_balances() == balances
    charges = (await store.list_charges(PSEUDONYM, ChargeFilter(), cursor=None, size=99)).rows
    assert [charge.charged_microcredits for charge in charges] == [30, 30]
    assert {charge.content_hash for charge in charges} == {b""}
    assert await differences(store) == []
    with pytest.raises(ResourceNotFound):
        await store.balance("alice", None, NOW_US)


async def test_keys_and_authorizations_are_gone_and_nobody_elses_are(store: LedgerStore) -> None:
    await live(store)
    await store.add_key(a_key("of-bob", "auth-bob", b"b" * 32))
    await store.erase_subscriber(an_erasure())
    assert await store.find_grantee(b"h" * 32) is None
    assert await store.find_grantee(b"b" * 32) is not None
    with pytest.raises(ResourceNotFound):
        await store.reserve(a_reserve("res-3", owner=store.owner))
    bobs = await store.reserve(
        a_reserve("of-bob", owner=store.owner, subscriber_id="bob", authorization_id="auth-bob", wanted_microcredits=10)
    )
    assert bobs is not None
    await store.settle(a_settle(None, "of-bob", subscriber_id="bob", owner=store.owner))


async def test_what_is_running_keeps_a_subscriber_from_being_forgotten(store: LedgerStore) -> None:
    await live(store)
    await reserve(store, "res-3", request_id="running")
    with pytest.raises(ReservationsOpen) as refused:
        await store.erase_subscriber(an_erasure())
    assert refused.value.reservations == 1
    assert (await store.balance("alice", None, NOW_US)).wallet.subscriber_id == "alice"
    captured = await store.capture(a_capture(50, "res-3", owner=store.owner))
    assert captured.captured_microcredits == 50
    await store.settle(a_settle(50, "res-3", owner=store.owner))
    await store.erase_subscriber(an_erasure())


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"subscriber_id": "nobody"}, ResourceNotFound),
        ({"reason": ""}, RequestInvalid),
        ({"reason": "ALICE asked"}, RequestInvalid),
        ({"actor": "alice"}, RequestInvalid),
        ({"actor": "two\nlines"}, RequestInvalid),
    ],
)
async def test_a_refused_erasure_changes_nothing(
    store: LedgerStore, values: dict[str, str], error: type[MetergateError]
) -> None:
    await live(store)
    with pytest.raises(error):
        await store.erase_subscriber(an_erasure(**values))
    assert (await store.find_grantee(b"h" * 32)) is not None
    assert (await store.balance("alice", None, NOW_US)).available_microcredits > 0


async def test_the_same_subscriber_may_come_back_and_is_somebody_new(store: LedgerStore) -> None:
    await live(store)
    await store.erase_subscriber(an_erasure())
    await open_wallet(store, a_grant("of-alice", 5))
    assert (await store.balance("alice", None, NOW_US)).available_microcredits == 5
    await reserve(
        store,
        "res-1-again",
        request_id="alice asked res-1",
        minimum_microcredits=1,
        wanted_microcredits=5,
        capture_microcredits=1,
        capture_usage=a_capture(1).target_usage,
    )
    await store.settle(a_settle(1, "res-1-again", owner=store.owner))


# --- what is left on the disk ---------------------------------------------------------------------------------------


def bytes_of(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.parent.glob(f"{path.name}*")):
        if not file.name.endswith("-shm"):  # an index of the WAL: numbers of pages
            yield file.name, file.read_bytes()


async def test_nothing_that_names_the_subscriber_is_left_in_any_file(tmp_path: Path) -> None:
    """Among hundreds of others, whose rows filled, split and emptied the pages that its own lie on."""
    path, numbers = tmp_path / "ledger.db", count()
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    names = [f"person-{number % 7}-{number:03}-" for number in range(300)]
    victims = names[10:300:29]
    await open_wallet(store)
    for add in (
        lambda name: store.add_subscriber(a_wallet(name)),
        lambda name: store.add_authorization(a_consent(f"auth-{name}", name)),
        lambda name: store.add_key(a_key(f"key-{name}", f"auth-{name}", name.ljust(32).encode())),
        lambda name: store.add_grant(a_grant(f"grant-{name}", 10_000, name)),
    ):
        await asyncio.gather(*map(add, names))

    async def run(name: str, turn: int) -> None:
        mine = {"subscriber_id": name, "owner": store.owner}
        reservation_id = f"r-{next(numbers)}"
        await store.reserve(
            a_reserve(reservation_id, authorization_id=f"auth-{name}", request_id=f"{name}:{turn}", **mine)
        )
        await store.capture(a_capture(60, reservation_id, wanted_microcredits=200 + turn * 99, **mine))
        await store.settle(a_settle(None if turn == 3 else 50, reservation_id, **mine))

    for turn in range(6):
        await asyncio.gather(*(run(name, turn) for name in names))
        if turn == 4:
            await store.prune_reservations(NOW_US + 1, count_max=700)
    for name in victims:
        assert any(name.encode() in content for _, content in bytes_of(path))
        await store.erase_subscriber(an_erasure(subscriber_id=name, pseudonym=f"erased-{next(numbers)}"))
    left = {(file, name) for file, content in bytes_of(path) for name in victims if name.encode() in content}
    assert left == set()
    assert await differences(store) == []
    await store.close()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("SELECT count(*) FROM erasures").fetchone() == (len(victims),)

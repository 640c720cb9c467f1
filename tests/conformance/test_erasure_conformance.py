"""A subscriber that is forgotten: what names it is gone from everywhere, what it was charged stays and adds up."""

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
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

from metergate.core.errors import (
    MetergateError,
    RequestInvalid,
    ReservationsOpen,
    ResourceNotFound,
    StoreRefused,
)
from metergate.core.operations import EraseSubscriber
from metergate.ports import ChargeFilter, LedgerStore, TransferFilter
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore, compacting, erasing, expiring
from metergate.stores.sqlite import store as store_module

PSEUDONYM = "erased-0f3c"


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


async def test_grants_and_corrections_of_the_same_id_keep_what_was_made_of_them(store: LedgerStore) -> None:
    rolling: dict[str, Any] = {"rollover_microcredits_max": 20, "rollover_seconds": 9 * DAY_US // 1_000_000}
    june = a_grant("june", 50, expire_time_us=NOW_US - 1, priority=0, **rolling)
    await open_wallet(store, a_grant("case", 1_000), june)
    await store.expire_grants(NOW_US, 10)
    for name in ("june", "case"):
        await store.adjust(an_adjustment(7, name))
    await reserve(store, minimum_microcredits=20, wanted_microcredits=20)
    await store.settle(a_settle(20, owner=store.owner, captured=20))
    later_us = NOW_US + 9 * DAY_US
    await store.refund(a_refund(15, correction_id="rollover:june", now_us=later_us))
    await store.erase_subscriber(an_erasure())
    names = {grant.grant_id: grant for grant in (await store.list_grants(PSEUDONYM, cursor=None, size=9)).rows}
    rolled = [name for name, grant in names.items() if grant.rollover_microcredits_max]
    assert f"rollover:{rolled[0]}" in names
    assert any(name.startswith(f"refund-of-{rolled[0]}:erased-") for name in names)
    assert not any("june" in name or "case" in name for name in names)
    reversal = await store.reverse(a_reversal(rolled[0], subscriber_id=PSEUDONYM, now_us=later_us))
    assert (reversal.amount_microcredits, reversal.shortfall_microcredits) == (15, 5), "30 expired"


async def test_what_was_settled_after_the_time_of_the_erasure_is_no_difference(store: LedgerStore) -> None:
    """The clock may be set back; and the time was read before the batch, in which settlements come first."""
    await live(store)
    await reserve(store, "last", request_id="last")
    await store.settle(a_settle(30, "last", owner=store.owner, captured=40, now_us=NOW_US + 20))
    await store.erase_subscriber(an_erasure(now_us=NOW_US - DAY_US))
    assert await differences(store) == []


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
    store: LedgerStore, values: dict[str, Any], error: type[MetergateError]
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


async def test_what_expires_while_its_subscriber_is_forgotten_expires_under_the_pseudonym(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, loop = tmp_path / "ledger.db", asyncio.get_running_loop()
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    await open_wallet(store, a_grant("ends", 50, expire_time_us=NOW_US + 5))
    find = expiring.expired_grants

    def forgotten_meanwhile(connection: sqlite3.Connection, now_us: int, limit: int) -> list[expiring.ExpiredGrant]:
        found = find(connection, now_us, limit)
        asyncio.run_coroutine_threadsafe(store.erase_subscriber(an_erasure()), loop).result(timeout=30)
        return found

    monkeypatch.setattr(expiring, "expired_grants", forgotten_meanwhile)
    await store.expire_grants(NOW_US + 5, 9)
    monkeypatch.undo()
    assert "alice" not in caplog.text
    assert await store.expire_grants(NOW_US + 5, 9) == 1
    assert (await store.account_balances())["breakage"].credited_microcredits == 50
    await store.close()


# --- what is left on the disk ---------------------------------------------------------------------------------------


def bytes_of(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.parent.glob(f"{path.name}*")):
        if not file.name.endswith("-shm"):  # an index of the WAL: numbers of pages
            yield file.name, file.read_bytes()


async def lively(path: Path) -> tuple[SqliteLedgerStore, list[str]]:
    """A ledger whose rows filled, split and emptied pages, and the names of those who are to be forgotten."""
    chance, numbers = random.Random(5), count()
    store = await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=True)
    names = [f"person-{number:04}-" for number in range(1_000)]
    chance.shuffle(names)
    await open_wallet(store)
    await asyncio.gather(*(store.add_subscriber(a_wallet(name)) for name in names))
    await asyncio.gather(*(store.add_authorization(a_consent(f"auth-{name}", name)) for name in names))
    keys = [a_key(f"key-{name}", f"auth-{name}", name.ljust(32).encode()) for name in names]
    await asyncio.gather(*(store.add_key(key) for key in keys))
    await asyncio.gather(*(store.add_grant(a_grant(f"grant-{name}", 10_000, name)) for name in names))

    async def run(name: str) -> None:
        mine = {"subscriber_id": name, "owner": store.owner}
        number = next(numbers)
        reservation_id = f"r-{number}"
        request_id = f"{name}:{number}:{'z' * chance.randint(0, 200)}"
        await store.reserve(a_reserve(reservation_id, authorization_id=f"auth-{name}", request_id=request_id, **mine))
        await store.capture(a_capture(60, reservation_id, wanted_microcredits=chance.randint(100, 400), **mine))
        await store.settle(a_settle(chance.choice([None, 9]), reservation_id, **mine))

    for _ in range(8):
        await asyncio.gather(*map(run, chance.sample(names, 600)))
        await store.prune_reservations(NOW_US + 1, count_max=256)
    return store, chance.sample(names, 150)


def left(path: Path, names: list[str]) -> set[tuple[str, str]]:
    """Which names are in which files."""
    return {(file, name) for file, content in bytes_of(path) for name in names if name.encode() in content}


async def test_nothing_that_names_the_subscriber_is_left_in_any_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store, names = await lively(path)
    names = names[:40]
    assert {name for _, name in left(path, names)} == set(names)
    for name in names:
        await store.erase_subscriber(an_erasure(subscriber_id=name, pseudonym=f"erased-{names.index(name)}"))
    assert left(path, names) == set()
    assert await differences(store) == []
    await store.close()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("SELECT count(*) FROM erasures").fetchone() == (len(names),)


async def test_of_a_large_store_it_is_said_that_copies_may_be_left_until_it_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    store, names = await lively(path)
    monkeypatch.setattr(compacting, "COMPACTED_AT_ONCE_BYTES", 0)
    for name in names:
        operation = an_erasure(subscriber_id=name, pseudonym=f"erased-{names.index(name)}")
        assert (await store.erase_subscriber(operation)).leaves_copies
    assert left(path, names) != set(), "else neither of these tests would know what compacting is for"
    with pytest.raises(StoreRefused, match="writing it"):
        compacting.compact(path)
    await store.close()
    compacting.compact(path)
    assert left(path, names) == set()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT sum(leaves_copies) FROM erasures").fetchone() == (0,)
    reader = await SqliteLedgerReader.open_read_only(path)
    assert await differences(reader) == []
    await reader.close()


async def test_what_a_reader_keeps_in_the_wal_is_gone_once_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "ledger.db", FakeClock(NOW_US)
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="gateway-1", create=True)
    await live(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM wallets").fetchone()
        monkeypatch.setattr(store_module, "WAL_WAIT_SECONDS", 0.0)
        assert (await store.erase_subscriber(an_erasure())).leaves_copies, "the reader is still there"
        assert left(path, ["alice"]) != set()
    clock.advance(1_000_000)
    await store.check()
    assert left(path, ["alice"]) == set()
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT leaves_copies FROM erasures").fetchone() == (0,)
    await store.close()


async def test_an_erasure_waits_for_a_reader_before_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "ledger.db", FakeClock(NOW_US)
    store = await SqliteLedgerStore.open(path, clock=clock, owner_id="gateway-1", create=True)
    await live(store)
    monkeypatch.setattr(store_module, "WAL_LOOK_SECONDS", 0.01)
    looked = asyncio.Event()
    look = erasing.leaves_copies

    def looking(connection: sqlite3.Connection, pseudonym: str) -> bool:
        clock.advance(1_000_000)
        found = look(connection, pseudonym)
        loop.call_soon_threadsafe(looked.set)
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store_module, "leaves_copies", looking)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM wallets").fetchone()
        task = asyncio.create_task(store.erase_subscriber(an_erasure()))
        async with asyncio.timeout(30):
            await looked.wait()
        assert not task.done()
    async with asyncio.timeout(30):
        assert not (await task).leaves_copies
    assert left(path, ["alice"]) == set()
    await store.close()

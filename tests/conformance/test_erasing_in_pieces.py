"""A subscriber is forgotten in small transactions: whatever comes between two of them, the books add up; it goes on."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from ledger_rows import (
    DAY_US,
    NOW_US,
    a_consent,
    a_grant,
    a_key,
    a_refund,
    a_reserve,
    a_reversal,
    a_settle,
    a_state_change,
    a_wallet,
    an_adjustment,
    differences,
    open_wallet,
    reserve,
)

from metergate.core.errors import (
    AuthorizationRevoked,
    ErasureUnfinished,
    LedgerInvariantBroken,
    MetergateError,
    ResourceNotFound,
    StoreUnavailable,
)
from metergate.core.operations import EraseSubscriber
from metergate.core.rows import WalletState
from metergate.ports import ChargeFilter, TransferFilter
from metergate.stores.sqlite import SqliteLedgerStore, compacting, erasing, writer
from metergate.stores.sqlite import store as store_module
from metergate.stores.sqlite.write_operations import SetUp

# More than any of these tests needs.
PIECES_MAX = 200


class Interrupted(MetergateError):
    """The erasure was interrupted."""


def an_erasure(**values: Any) -> EraseSubscriber:
    defaults = {"subscriber_id": "alice", "pseudonym": "erased-1", "reason": "she asked", "actor": "ops"}
    return EraseSubscriber(**(defaults | {"now_us": NOW_US + 9} | values))


async def live(store: SqliteLedgerStore) -> None:
    """Alice with all there can be, each kind more than once, and Bob, who goes on."""
    rolling: dict[str, Any] = {"rollover_microcredits_max": 20, "rollover_seconds": 9 * DAY_US // 1_000_000}
    await open_wallet(
        store,
        a_grant("of-alice", 1_000),
        a_grant("june", 50, expire_time_us=NOW_US - 1, priority=0, **rolling),
        a_grant("soon", 25, expire_time_us=NOW_US + 5, priority=1),
        a_grant("paid", 70, priority=99),
    )
    await store.add_authorization(a_consent("auth-2"))
    await store.add_key(a_key())
    for number in range(3):
        authorization_id = "auth-2" if number == 1 else "auth-1"
        mine = {"request_id": f"alice asked {number}", "authorization_id": authorization_id}
        await reserve(store, f"res-{number}", **mine)
        await store.settle(a_settle(30, f"res-{number}", owner=store.owner, captured=40))
        await reserve(store, f"released-{number}", request_id=f"alice gave up {number}")
        await store.settle(a_settle(None, f"released-{number}", owner=store.owner))
    await store.refund(a_refund(5, "charge-of-res-2", correction_id="alice-complained"))
    await store.adjust(an_adjustment(7, "june", reason="sorry, alice"))
    await store.refund(a_refund(25, "charge-of-res-0", correction_id="alice-again", now_us=NOW_US + 6))
    await store.reverse(a_reversal("paid", "alice-took-back"))
    await store.set_wallet_state(a_state_change("resumed", WalletState.ACTIVE))
    await store.add_subscriber(a_wallet("bob"))
    await store.add_authorization(a_consent("auth-bob", "bob"))
    await store.add_grant(a_grant("of-bob", 1_000, "bob"))


async def open_store(path: Path, *, create: bool = False) -> SqliteLedgerStore:
    return await SqliteLedgerStore.open(path, clock=FakeClock(NOW_US), owner_id="gateway-1", create=create)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Lets so many pieces, of one row each, be committed; None: all."""
    left: list[int | None] = [None]
    piece = erasing.erase_piece
    monkeypatch.setattr(erasing, "PIECE_ROWS", 1)

    def counted(connection: sqlite3.Connection, operation: EraseSubscriber) -> bool:
        if left[0] == 0:
            raise Interrupted
        if left[0] is not None:
            left[0] -= 1
        return piece(connection, operation)

    def to(count: int | None) -> None:
        left[0] = count

    monkeypatch.setattr(store_module, "erase_piece", counted)
    return to


async def _interrupted(store: SqliteLedgerStore, cut: Callable[[int | None], None]) -> AsyncIterator[int]:
    """After each piece, and before the end; PIECES_MAX is too few if it never ends."""
    for pieces in range(1, PIECES_MAX):
        cut(1)
        with pytest.raises(Interrupted):
            await store.erase_subscriber(an_erasure(pseudonym=f"erased-{pieces}"))
        names = set()
        with closing(sqlite3.connect(store._path)) as raw:
            for table in ("reservations", "charges", "transfers", "grants", "corrections", "authorizations"):
                names |= {name for (name,) in raw.execute(f"SELECT DISTINCT subscriber_id FROM {table}")}
        yield pieces
        if "alice" not in names:
            cut(None)
            return
    raise AssertionError("it does not end")


async def test_after_every_piece_the_books_verify(tmp_path: Path, cut: Callable[[int | None], None]) -> None:
    store = await open_store(tmp_path / "ledger.db", create=True)
    await live(store)
    before = await store.list_transfers("alice", TransferFilter(), cursor=None, size=99)
    balances = await store.account_balances()
    pieces = 0
    async for pieces in _interrupted(store, cut):
        assert await differences(store) == [], pieces
    assert pieces > 3 + 3 + len(before.rows), "one row at a time"
    erasure = await store.erase_subscriber(an_erasure(pseudonym="other", reason="again", actor="somebody"))
    assert (erasure.subscriber_id, erasure.reason, erasure.actor) == ("erased-1", "she asked", "ops"), "as it began"
    assert not erasure.leaves_copies
    assert await differences(store) == []
    after = await store.list_transfers("erased-1", TransferFilter(), cursor=None, size=99)
    assert [row.amount_microcredits for row in after.rows] == [row.amount_microcredits for row in before.rows]
    assert await store.account_balances() == balances
    charges = (await store.list_charges("erased-1", ChargeFilter(), cursor=None, size=99)).rows
    assert [charge.authorization_id for charge in charges] == ["erased-1-0", "erased-1-1", "erased-1-0"]
    with pytest.raises(ResourceNotFound):
        await store.erase_subscriber(an_erasure())
    await store.close()


async def test_after_every_piece_a_difference_is_still_found(tmp_path: Path, cut: Callable[[int | None], None]) -> None:
    """Else a ledger in which somebody is being forgotten would verify whatever is in it."""
    path = tmp_path / "ledger.db"
    store = await open_store(path, create=True)
    await live(store)
    async for pieces in _interrupted(store, cut):
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            for sql in (
                "UPDATE transfers SET amount_microcredits = amount_microcredits + {} "
                "WHERE kind = 'CHARGE' AND sequence = (SELECT max(sequence) FROM transfers WHERE kind = 'CHARGE')",
                "UPDATE charges SET charged_microcredits = charged_microcredits - {} WHERE charge_id LIKE '%res-2'",
                "UPDATE grants SET amount_microcredits = amount_microcredits + {} WHERE amount_microcredits >= 1000",
                "UPDATE corrections SET amount_microcredits = amount_microcredits + {} WHERE kind = 'ADJUSTMENT'",
            ):
                raw.execute(sql.format(1))
                assert await differences(store) != [], (pieces, sql)
                raw.execute(sql.format(-1))
    assert await differences(store) == []
    await store.close()


async def test_after_every_piece_nothing_is_done_for_who_is_being_forgotten(
    tmp_path: Path, cut: Callable[[int | None], None]
) -> None:
    store = await open_store(tmp_path / "ledger.db", create=True)
    await live(store)
    refused = (
        lambda: store.reserve(a_reserve("more", owner=store.owner)),
        lambda: store.settle(a_settle(30, "res-0", owner=store.owner, captured=40)),
        lambda: store.add_grant(a_grant("more")),
        lambda: store.add_grant(a_grant("more", subscriber_id="erased-1")),
        lambda: store.add_subscriber(a_wallet()),
        lambda: store.add_authorization(a_consent("more")),
        lambda: store.refund(a_refund(1, "charge-of-res-1", correction_id="more")),
        lambda: store.adjust(an_adjustment(1, "more")),
        lambda: store.adjust(an_adjustment(1, "more", subscriber_id="erased-1")),
        lambda: store.reverse(a_reversal("of-alice", "more")),
        lambda: store.set_wallet_state(a_state_change("more", WalletState.ACTIVE)),
    )
    async for pieces in _interrupted(store, cut):
        for ask in refused:
            with pytest.raises(ErasureUnfinished):
                await ask()
        with pytest.raises((AuthorizationRevoked, ResourceNotFound)):
            await store.add_key(a_key("more", secret_hash=b"m" * 32))
        assert await store.find_grantee(b"h" * 32) is None
        assert await store.expire_grants(NOW_US + DAY_US, 99) == 0, "what expires waits for the end"
        of_bob = {"subscriber_id": "bob", "owner": store.owner}
        await store.reserve(a_reserve(f"bob-{pieces}", authorization_id="auth-bob", **of_bob))
        await store.settle(a_settle(9, f"bob-{pieces}", captured=9, **of_bob))
        assert await differences(store) == []
    await store.erase_subscriber(an_erasure())
    assert await store.expire_grants(NOW_US + DAY_US, 99) > 0
    await store.add_grant(a_grant("more", subscriber_id="erased-1"))
    assert await differences(store) == []
    await store.close()


async def test_an_interrupted_erasure_goes_on_in_a_new_process_and_in_a_backup(
    tmp_path: Path, cut: Callable[[int | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"
    store = await open_store(path, create=True)
    await live(store)
    cut(9)
    with pytest.raises(Interrupted):
        await store.erase_subscriber(an_erasure())
    await store.close()
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(tmp_path / "backup.db")) as copy:
        source.backup(copy)
    for file in (path, tmp_path / "backup.db"):
        cut(None)
        caplog.clear()
        store = await open_store(file)
        assert "1 erasures of subscribers" in caplog.text, "whoever looks after the gateway must know"
        assert "alice" not in caplog.text.replace(str(file), "")
        with pytest.raises(ErasureUnfinished):
            await store.add_grant(a_grant("more"))
        assert await differences(store) == []
        assert (await store.erase_subscriber(an_erasure(pseudonym="other"))).subscriber_id == "erased-1"
        assert await differences(store) == []
        await store.close()
        assert not [found for found in path.parent.glob(f"{file.name}*") if b"alice" in found.read_bytes()]


async def test_two_that_forget_the_same_subscriber_at_once_agree(
    tmp_path: Path, cut: Callable[[int | None], None]
) -> None:
    store = await open_store(tmp_path / "ledger.db", create=True)
    await live(store)
    both = (store.erase_subscriber(an_erasure(pseudonym=f"erased-{number}")) for number in range(2))
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(refusal) for refusal in refused] == [ResourceNotFound], "as if it had come after the other"
    assert await differences(store) == []
    await store.close()


async def test_references_are_checked_in_every_batch_but_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path / "ledger.db", create=True)
    await live(store)
    end, checks = erasing.end_erasure, []

    def ended(connection: sqlite3.Connection, subscriber_id: str) -> object:
        checks.append(connection.execute("PRAGMA foreign_keys").fetchone()[0])
        return end(connection, subscriber_id)

    def noted(connection: sqlite3.Connection) -> None:
        checks.append(connection.execute("PRAGMA foreign_keys").fetchone()[0])

    while await store._set_up(SetUp(lambda connection: erasing.erase_piece(connection, an_erasure()))):
        pass
    together = [
        store._set_up(SetUp(noted)),
        store._set_up(SetUp(lambda connection: ended(connection, "alice"), leaves_traces=True)),
        store._set_up(SetUp(noted)),
    ]
    await asyncio.gather(*together)
    assert checks == [1, 1, 0], "those of one batch with it come first, in one of their own"
    await store._set_up(SetUp(noted))
    assert checks[-1] == 1
    await store.close()


async def test_the_end_is_refused_while_a_row_has_the_old_name(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "ledger.db", create=True)
    await live(store)
    await store._set_up(SetUp(lambda connection: erasing.erase_piece(connection, an_erasure())))
    end = SetUp(lambda connection: erasing.end_erasure(connection, "alice"), leaves_traces=True)
    with pytest.raises(LedgerInvariantBroken):
        await store._set_up(end)
    assert await differences(store) == []
    await store.erase_subscriber(an_erasure())
    assert await differences(store) == []
    await store.close()


async def test_what_a_crash_after_the_end_left_is_removed_when_the_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    store = await open_store(path, create=True)
    await live(store)

    def crash(connection: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("the process died here")

    monkeypatch.setattr(writer, "compact_if_small", crash)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:  # keeps the WAL, as a crash does
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM wallets").fetchone()
        with pytest.raises(StoreUnavailable):
            await store.erase_subscriber(an_erasure())
        assert [found for found in path.parent.glob(f"{path.name}*") if b"alice" in found.read_bytes()]
    monkeypatch.setattr(writer, "compact_if_small", compacting.compact_if_small)
    await asyncio.sleep(store_module.WAL_LOOK_SECONDS)
    async with asyncio.timeout(30):
        while True:  # it opens the store again
            try:
                await store.check()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    assert not [found for found in path.parent.glob(f"{path.name}*") if b"alice" in found.read_bytes()]
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT leaves_copies, erasing_subscriber_id FROM erasures").fetchone() == (0, None)
    await store.close()

"""AdminService corrects wallets: what it takes, what it answers with, what it refuses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from edge_harness import refused
from fakes import FakeClock, MemoryLedgerStore
from ledger_rows import NOW_US, a_grant, a_settle, available, differences, open_wallet, reserve

from metergate.core.rows import WalletState
from metergate.edges.admin import AdminServicer
from metergate.edges.admin_socket import admin_target, start_admin_server
from metergate.v1 import admin_pb2, admin_pb2_grpc

WHY: dict[str, Any] = {"reason": "the answer was cut", "actor": "zhang"}
WALLET = "subscribers/alice/wallet"


@pytest.fixture
async def store() -> MemoryLedgerStore:
    """Alice has a paid grant, and was charged 40 of it."""
    opened = MemoryLedgerStore(clock=FakeClock(NOW_US))
    await open_wallet(opened, a_grant("june", 1_000))
    await reserve(opened)
    await opened.settle(a_settle(40, owner=opened.owner, captured=40))
    return opened


@pytest.fixture
async def stub(store: MemoryLedgerStore, tmp_path: Path) -> AsyncIterator["admin_pb2_grpc.AdminServiceAsyncStub"]:
    path = tmp_path / "ledger.db.admin"
    server = await start_admin_server(path, AdminServicer(store, store.clock, *(list[str]().append for _ in range(3))))
    async with grpc.aio.insecure_channel(admin_target(path)) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)
    await server.stop(None)
    assert await differences(store) == []


def a_refund(**values: Any) -> admin_pb2.RefundChargeRequest:
    defaults: dict[str, Any] = {
        "name": "subscribers/alice/charges/charge-of-res-1",
        "correction_id": "refund-1",
        "grant_seconds": 60,
    }
    return admin_pb2.RefundChargeRequest(**(defaults | WHY | {"amount_microcredits": 30} | values))


def an_adjustment(amount: int, **values: Any) -> admin_pb2.AdjustWalletRequest:
    content: dict[str, Any] = {"name": WALLET, "correction_id": "adjustment-1", "amount_microcredits": amount}
    return admin_pb2.AdjustWalletRequest(**(content | WHY | values))


def a_reversal(**values: Any) -> admin_pb2.ReverseGrantRequest:
    content: dict[str, Any] = {"name": "subscribers/alice/grants/june", "correction_id": "reversal-1"}
    return admin_pb2.ReverseGrantRequest(**(content | WHY | values))


async def test_a_refund_is_recorded_with_its_reason_and_asked_again_answers_the_same(
    stub: "admin_pb2_grpc.AdminServiceAsyncStub", store: MemoryLedgerStore
) -> None:
    first = (await stub.RefundCharge(a_refund())).correction
    assert first.name == "subscribers/alice/corrections/refund-1"
    assert first.kind == admin_pb2.CORRECTION_KIND_REFUND
    assert (first.charge, first.grant) == ("subscribers/alice/charges/charge-of-res-1", "")
    assert (first.amount_microcredits, first.grant_seconds) == (30, 60)
    assert (first.reason, first.actor) == ("the answer was cut", "zhang")
    store.clock.advance(1_000_000)
    assert (await stub.RefundCharge(a_refund())).correction == first
    assert await available(store) == 990
    refusal = await refused(stub.RefundCharge(a_refund(amount_microcredits=5)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ID_CONFLICT")


async def test_more_than_is_left_of_a_charge_is_refused_with_both_amounts(
    stub: "admin_pb2_grpc.AdminServiceAsyncStub",
) -> None:
    await stub.RefundCharge(a_refund())
    refusal = await refused(stub.RefundCharge(a_refund(correction_id="refund-2")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_CHARGE")
    assert refusal.metadata["charged_microcredits"] == "40"
    assert refusal.metadata["refunded_microcredits"] == "30"


async def test_credit_is_given_and_taken(
    stub: "admin_pb2_grpc.AdminServiceAsyncStub", store: MemoryLedgerStore
) -> None:
    given = (await stub.AdjustWallet(an_adjustment(40, grant_seconds=60))).correction
    assert (given.amount_microcredits, given.grant_seconds) == (40, 60)
    taken = (await stub.AdjustWallet(an_adjustment(-500, correction_id="adjustment-2"))).correction
    assert (taken.amount_microcredits, taken.HasField("grant_seconds")) == (-500, False)
    assert await available(store) == 500
    refusal = await refused(stub.AdjustWallet(an_adjustment(-501, correction_id="adjustment-3")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_CREDIT")


async def test_a_reversed_grant_suspends_the_wallet_until_it_is_resumed(
    stub: "admin_pb2_grpc.AdminServiceAsyncStub", store: MemoryLedgerStore
) -> None:
    reversal = (await stub.ReverseGrant(a_reversal())).correction
    assert (reversal.grant, reversal.amount_microcredits, reversal.shortfall_microcredits) == (
        "subscribers/alice/grants/june",
        960,
        40,
    )
    assert (await store.balance("alice", None, NOW_US)).wallet.state is WalletState.SUSPENDED
    resume = admin_pb2.ResumeWalletRequest(name=WALLET, correction_id="resume-1", **WHY)
    assert (await stub.ResumeWallet(resume)).correction.kind == admin_pb2.CORRECTION_KIND_RESUMPTION
    assert (await store.balance("alice", None, NOW_US)).wallet.state is WalletState.ACTIVE
    refusal = await refused(stub.ReverseGrant(a_reversal(correction_id="reversal-2")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ALREADY_REVERSED")
    suspend = admin_pb2.SuspendWalletRequest(name=WALLET, correction_id="suspend-1", **WHY)
    assert (await stub.SuspendWallet(suspend)).correction.kind == admin_pb2.CORRECTION_KIND_SUSPENSION
    assert (await store.balance("alice", None, NOW_US)).wallet.state is WalletState.SUSPENDED


async def test_wrong_fields_are_told_by_name(stub: "admin_pb2_grpc.AdminServiceAsyncStub") -> None:
    wrong: dict[str, Any] = {"name": "alice", "correction_id": "a b"}
    for call in (
        stub.RefundCharge(a_refund(**wrong)),
        stub.AdjustWallet(an_adjustment(5, **wrong)),
        stub.ReverseGrant(a_reversal(**wrong)),
        stub.SuspendWallet(admin_pb2.SuspendWalletRequest(**wrong)),
        stub.ResumeWallet(admin_pb2.ResumeWalletRequest(**wrong)),
    ):
        refusal = await refused(call)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert set(refusal.violations) == {"name", "correction_id"}
    for call, fields in (
        (stub.RefundCharge(a_refund(amount_microcredits=0)), {"amount_microcredits"}),
        (stub.RefundCharge(a_refund(grant_seconds=0)), {"grant_seconds"}),
        (stub.AdjustWallet(an_adjustment(0)), {"amount_microcredits"}),
        (stub.AdjustWallet(an_adjustment(-5, grant_seconds=5)), {"grant_seconds"}),
        (stub.ReverseGrant(a_reversal(reason="", actor="line\nbreak")), {"reason", "actor"}),
    ):
        refusal = await refused(call)
        assert (refusal.code, set(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_what_is_not_there_is_not_found(stub: "admin_pb2_grpc.AdminServiceAsyncStub") -> None:
    for call in (
        stub.RefundCharge(a_refund(name="subscribers/alice/charges/unknown")),
        stub.RefundCharge(a_refund(name="subscribers/bob/charges/charge-of-res-1")),
        stub.AdjustWallet(an_adjustment(5, name="subscribers/bob/wallet")),
        stub.ReverseGrant(a_reversal(name="subscribers/alice/grants/unknown")),
        stub.ReverseGrant(a_reversal(name="subscribers/alice/grants/rollover:june")),
    ):
        assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND

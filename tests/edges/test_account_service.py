from typing import Any

import grpc
import pytest
from edge_harness import APP_KEY, FOREIGN_KEY, OTHER_APP_KEY, OWN_KEY, Edge, add_grant, bearer, refused
from google.protobuf.timestamp_pb2 import Timestamp
from ledger_rows import a_grant, a_refund, a_reversal, an_adjustment

from metergate.core.errors import StoreUnavailable
from metergate.core.operations import Reserve, Settle, Settlement
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.edges.responses import timestamp
from metergate.v1 import account_pb2

OWN, APP, OTHER_APP, FOREIGN = (bearer(key) for key in (OWN_KEY, APP_KEY, OTHER_APP_KEY, FOREIGN_KEY))


async def charge(edge: Edge, number: int, app_id: str = "workbuddy", model_id: str = "small") -> str:
    """One settled request, a second after the last; returns the charge's id."""
    edge.clock.advance(1_000_000)
    usage = Usage.of({TokenClass.PROMPT: 5})
    reserve = Reserve(
        reservation_id=f"r{number}",
        subscriber_id="zhang",
        authorization_id=f"zhang-{app_id or 'own'}",
        request_id=f"q{number}",
        content_hash=b"h",
        owner=edge.store.owner,
        model_id=model_id,
        provider_id="lab",
        counting_source=CountingSource.TOKENIZER,
        rate_card_id="card-1",
        minimum_microcredits=12,
        wanted_microcredits=20,
        limit_microcredits=100,
        capture_microcredits=10,
        capture_usage=usage,
        now_us=edge.clock.now_us(),
    )
    await edge.store.reserve(reserve)
    settlement = Settlement(
        charge_id=f"c{number}",
        charged_microcredits=10,
        usage_counted=usage,
        usage_reported=usage,
        usage_mismatch=False,
        attempts=(),
        finish_reason=FinishReason.STOP,
        captured_microcredits=0,
    )
    await edge.store.settle(
        Settle(
            reservation_id=f"r{number}",
            subscriber_id="zhang",
            owner=edge.store.owner,
            close_cause=CloseCause.FINISHED,
            settlement=settlement,
            now_us=edge.clock.now_us(),
        )
    )
    return f"c{number}"


@pytest.fixture
async def busy(edge: Edge) -> Edge:
    """Zhang has 1,000 microcredits; workbuddy was charged twice, cloudphone once, Zhang's own key once."""
    await add_grant(edge.store, "zhang", "g1", 1000)
    await charge(edge, 1)
    await charge(edge, 2, model_id="another")
    await charge(edge, 3, app_id="cloudphone")
    await charge(edge, 4, app_id="")
    return edge


async def ids_of_charges(edge: Edge, metadata: tuple[tuple[str, str], ...], **fields: object) -> list[str]:
    request = account_pb2.ListChargesRequest(filter=account_pb2.ListFilter(**fields))  # type: ignore[arg-type]
    response = await edge.account.ListCharges(request, metadata=metadata)
    return [row.name.rpartition("/")[2] for row in response.charges]


async def test_the_subscribers_own_key_sees_the_whole_wallet(busy: Edge) -> None:
    response = await busy.account.GetWallet(account_pb2.GetWalletRequest(), metadata=OWN)
    assert response.wallet == account_pb2.Wallet(
        name="subscribers/zhang/wallet",
        spendable_microcredits=960,
        available_microcredits=960,
        reserved_microcredits=0,
    )


async def test_an_apps_key_sees_only_what_it_may_still_spend(busy: Edge) -> None:
    request = account_pb2.GetWalletRequest(name="subscribers/zhang/wallet")
    response = await busy.account.GetWallet(request, metadata=APP)
    assert response.wallet == account_pb2.Wallet(name="subscribers/zhang/wallet", spendable_microcredits=580)


async def test_another_subscribers_wallet_is_not_there(busy: Edge) -> None:
    request = account_pb2.GetWalletRequest(name="subscribers/zhang/wallet")
    refusal = await refused(busy.account.GetWallet(request, metadata=FOREIGN))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert refusal.metadata == {"resource_name": "subscribers/zhang/wallet"}


async def test_what_is_no_name_is_an_invalid_argument(busy: Edge) -> None:
    refusals = [
        await refused(busy.account.GetWallet(account_pb2.GetWalletRequest(name="wallet"), metadata=OWN)),
        await refused(busy.account.ListCharges(account_pb2.ListChargesRequest(parent="zhang"), metadata=OWN)),
        await refused(busy.account.GetCharge(account_pb2.GetChargeRequest(), metadata=OWN)),
    ]
    assert {refusal.code for refusal in refusals} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [list(refusal.violations) for refusal in refusals] == [["name"], ["parent"], ["name"]]


async def test_grants_are_listed_newest_first_with_what_is_left(busy: Edge) -> None:
    await add_grant(busy.store, "zhang", "g2", 7)
    response = await busy.account.ListGrants(account_pb2.ListGrantsRequest(), metadata=OWN)
    assert [grant.name for grant in response.grants] == [
        "subscribers/zhang/grants/g2",
        "subscribers/zhang/grants/g1",
    ]
    assert [grant.remaining_microcredits for grant in response.grants] == [7, 960]
    assert response.grants[0].source == account_pb2.GRANT_SOURCE_TOP_UP
    assert not response.grants[0].HasField("expire_time")
    assert response.next_page_token == ""


async def test_a_grants_rule_and_what_became_of_it_are_shown(busy: Edge) -> None:
    now_us, store = busy.store.clock.now_us(), busy.store
    content: dict[str, Any] = {"subscriber_id": "zhang", "effective_time_us": now_us, "create_time_us": now_us}
    content |= {"priority": 0}  # drawn before g1, which never expires
    june = a_grant("june", 70, **content, expire_time_us=now_us + 1, rollover_microcredits_max=50, rollover_seconds=60)
    await store.add_grant(june)
    store.clock.advance(1)
    await store.expire_grants(now_us + 1, 9)
    content = {"subscriber_id": "zhang", "now_us": now_us + 1}
    await store.refund(a_refund(5, "c1", **content))
    await store.adjust(an_adjustment(-3, **content))
    await store.reverse(a_reversal("june", **content))
    grants = (await busy.account.ListGrants(account_pb2.ListGrantsRequest(page_size=2), metadata=OWN)).grants
    assert [row.name for row in grants] == ["subscribers/zhang/grants/rollover:june", "subscribers/zhang/grants/june"]
    assert (grants[1].rollover_microcredits_max, grants[1].rollover_seconds) == (50, 60)
    assert grants[0].source == account_pb2.GRANT_SOURCE_ROLLOVER
    assert [row.reverse_time for row in grants] == [timestamp(now_us + 1)] * 2
    request = account_pb2.ListTransfersRequest(page_size=5)
    transfers = (await busy.account.ListTransfers(request, metadata=OWN)).transfers
    assert [(row.kind, row.debit_account, row.credit_account, row.amount_microcredits) for row in transfers] == [
        (account_pb2.TRANSFER_KIND_REVERSAL, "grant:rollover:june", "reversals", 47),
        (account_pb2.TRANSFER_KIND_ADJUSTMENT, "grant:rollover:june", "goodwill", 3),
        (account_pb2.TRANSFER_KIND_REFUND, "revenue", "grant:g1", 5),
        (account_pb2.TRANSFER_KIND_EXPIRY, "grant:june", "breakage", 20),
        (account_pb2.TRANSFER_KIND_ROLLOVER, "grant:june", "grant:rollover:june", 50),
    ]
    assert transfers[2].charge == "subscribers/zhang/charges/c1"


async def test_an_apps_key_lists_neither_grants_nor_transfers(busy: Edge) -> None:
    for call in (
        busy.account.ListGrants(account_pb2.ListGrantsRequest(), metadata=APP),
        busy.account.ListTransfers(account_pb2.ListTransfersRequest(), metadata=APP),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SUBSCRIBER_KEY_REQUIRED")


async def test_an_apps_key_sees_its_own_charges_and_the_subscribers_all(busy: Edge) -> None:
    assert await ids_of_charges(busy, OWN) == ["c4", "c3", "c2", "c1"]
    assert await ids_of_charges(busy, APP) == ["c2", "c1"]
    assert await ids_of_charges(busy, OTHER_APP) == ["c3"]
    assert await ids_of_charges(busy, FOREIGN) == []


async def test_charges_are_filtered_by_app_and_model(busy: Edge) -> None:
    assert await ids_of_charges(busy, OWN, app="apps/workbuddy") == ["c2", "c1"]
    assert await ids_of_charges(busy, OWN, app="apps/workbuddy", model="models/small") == ["c1"]
    assert await ids_of_charges(busy, APP, model="models/another") == ["c2"]
    assert await ids_of_charges(busy, APP, app="apps/cloudphone") == []


async def test_charges_are_filtered_by_time_to_the_microsecond(busy: Edge) -> None:
    second = (await busy.store.get_charge("zhang", "c2")).settle_time_us
    third = (await busy.store.get_charge("zhang", "c3")).settle_time_us
    assert await ids_of_charges(busy, OWN, start_time=timestamp(second), end_time=timestamp(third)) == ["c2"]
    assert await ids_of_charges(busy, OWN, start_time=timestamp(second + 1)) == ["c4", "c3"]
    just_after = timestamp(second)
    just_after.nanos += 1
    assert await ids_of_charges(busy, OWN, start_time=just_after) == ["c4", "c3"]
    assert await ids_of_charges(busy, OWN, end_time=just_after) == ["c2", "c1"]


async def test_a_filter_that_makes_no_sense_is_refused_by_field(busy: Edge) -> None:
    bad = account_pb2.ListFilter(
        start_time=Timestamp(seconds=5), end_time=Timestamp(seconds=5), app="workbuddy", model="small"
    )
    refusal = await refused(busy.account.ListCharges(account_pb2.ListChargesRequest(filter=bad), metadata=APP))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.violations) == {"filter.start_time", "filter.app", "filter.model"}


async def test_pages_join_to_the_whole_list_without_gap_or_repeat(busy: Edge) -> None:
    names, token, pages = [], "", 0
    while pages == 0 or token:
        request = account_pb2.ListChargesRequest(page_size=3, page_token=token)
        response = await busy.account.ListCharges(request, metadata=OWN)
        names += [row.name.rpartition("/")[2] for row in response.charges]
        token, pages = response.next_page_token, pages + 1
    assert (names, pages) == (["c4", "c3", "c2", "c1"], 2)


async def test_a_page_token_serves_only_the_query_it_came_from(busy: Edge) -> None:
    first = await busy.account.ListCharges(account_pb2.ListChargesRequest(page_size=1), metadata=OWN)
    token = first.next_page_token
    filtered = account_pb2.ListFilter(app="apps/workbuddy")
    for call in (
        busy.account.ListCharges(account_pb2.ListChargesRequest(page_token=token, filter=filtered), metadata=OWN),
        busy.account.ListCharges(account_pb2.ListChargesRequest(page_token=token), metadata=APP),
        busy.account.ListCharges(account_pb2.ListChargesRequest(page_token=token), metadata=FOREIGN),
        busy.account.ListTransfers(account_pb2.ListTransfersRequest(page_token=token), metadata=OWN),
        busy.account.ListGrants(account_pb2.ListGrantsRequest(page_token="3"), metadata=OWN),
    ):
        refusal = await refused(call)
        assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_negative_page_size_is_refused(busy: Edge) -> None:
    refusal = await refused(busy.account.ListTransfers(account_pb2.ListTransfersRequest(page_size=-1), metadata=OWN))
    assert list(refusal.violations) == ["page_size"]


async def test_a_charge_is_read_by_its_name(busy: Edge) -> None:
    request = account_pb2.GetChargeRequest(name="subscribers/zhang/charges/c1")
    row = (await busy.account.GetCharge(request, metadata=APP)).charge
    assert row.name == request.name
    assert (row.request_id, row.app, row.model, row.provider) == (
        "q1",
        "apps/workbuddy",
        "models/small",
        "providers/lab",
    )
    assert row.channel == account_pb2.CHANNEL_APP
    assert row.rate_card == "models/small/rateCards/card-1"
    assert row.charged_microcredits == 10
    assert row.usage_reported == row.usage_counted
    assert row.settle_time == timestamp((await busy.store.get_charge("zhang", "c1")).settle_time_us)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        (FOREIGN, "subscribers/zhang/charges/c1"),
        (FOREIGN, "subscribers/li/charges/c1"),
        (OTHER_APP, "subscribers/zhang/charges/c1"),
        (APP, "subscribers/zhang/charges/c4"),
        (OWN, "subscribers/zhang/charges/unheard-of"),
    ],
)
async def test_a_charge_of_somebody_else_is_not_there(
    busy: Edge, metadata: tuple[tuple[str, str], ...], name: str
) -> None:
    refusal = await refused(busy.account.GetCharge(account_pb2.GetChargeRequest(name=name), metadata=metadata))
    assert (refusal.code, refusal.metadata) == (grpc.StatusCode.NOT_FOUND, {"resource_name": name})


async def test_transfers_are_listed_newest_first(busy: Edge) -> None:
    response = await busy.account.ListTransfers(account_pb2.ListTransfersRequest(), metadata=OWN)
    assert [row.name.rpartition("/")[2] for row in response.transfers] == ["5", "4", "3", "2", "1"]
    newest, first = response.transfers[0], response.transfers[-1]
    assert newest.kind == account_pb2.TRANSFER_KIND_CHARGE
    assert (newest.debit_account, newest.credit_account, newest.amount_microcredits) == ("grant:g1", "revenue", 10)
    assert newest.charge == "subscribers/zhang/charges/c4"
    assert (first.kind, first.charge) == (account_pb2.TRANSFER_KIND_GRANT, "")
    assert first.grant == "subscribers/zhang/grants/g1"


async def test_transfers_are_filtered_by_app(busy: Edge) -> None:
    request = account_pb2.ListTransfersRequest(filter=account_pb2.ListFilter(app="apps/cloudphone"))
    response = await busy.account.ListTransfers(request, metadata=OWN)
    assert [row.charge for row in response.transfers] == ["subscribers/zhang/charges/c3"]


async def test_the_store_being_away_is_unavailable_with_a_time_to_retry(
    busy: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def balance(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(busy.store, "balance", balance)
    refusal = await refused(busy.account.GetWallet(account_pb2.GetWalletRequest(), metadata=OWN))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert refusal.retry_seconds == 1

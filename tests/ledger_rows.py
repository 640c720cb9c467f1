"""Builders of ledger rows and operations with sensible values, for tests that care about a few of them."""

from typing import Any

from metergate.core.audit import Audit, Difference
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Refund,
    Reserve,
    Reserved,
    Reverse,
    Settle,
    Settlement,
    SetWalletState,
)
from metergate.core.rating import RateCard
from metergate.core.reservation import CloseCause, Owner, Reservation
from metergate.core.rows import (
    ApiKey,
    Attempt,
    Authorization,
    Channel,
    FinishReason,
    Grant,
    GrantSource,
    Wallet,
    WalletState,
)
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.ports import LedgerStore
from metergate.stores.sqlite import SqliteLedgerReader

NOW_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
OWNER = Owner(owner_id="gateway-1", epoch=1)

# One microcredit a token of any class: amounts of credit and of tokens read alike in tests.
CARD = RateCard(
    rate_card_id="card-1",
    model_id="model-1",
    effective_time_us=0,
    expire_time_us=None,
    prices=tuple((kind, 1_000_000) for kind in TokenClass),
)


def tokens(count: int) -> Usage:
    """Usage that costs ``count`` microcredits at CARD; none for an impossible count."""
    return Usage.of({TokenClass.COMPLETION: max(0, count)})


def a_wallet(subscriber_id: str = "alice", **values: Any) -> AddSubscriber:
    defaults: dict[str, Any] = {"state": WalletState.ACTIVE, "sequence": 0, "create_time_us": NOW_US}
    return AddSubscriber(wallet=Wallet(subscriber_id=subscriber_id, **(defaults | values)))


def a_grant(grant_id: str = "grant-1", amount: int = 1_000, subscriber_id: str = "alice", **values: Any) -> AddGrant:
    defaults: dict[str, Any] = {
        "source": GrantSource.TOP_UP,
        "priority": 10,
        "remaining_microcredits": amount,
        "effective_time_us": 0,
        "expire_time_us": None,
        "create_time_us": NOW_US,
    }
    row = Grant(grant_id=grant_id, subscriber_id=subscriber_id, amount_microcredits=amount, **(defaults | values))
    return AddGrant(grant=row)


def a_consent(authorization_id: str = "auth-1", subscriber_id: str = "alice", **values: Any) -> AddAuthorization:
    defaults: dict[str, Any] = {
        "app_id": "app-1",
        "channel": Channel.APP,
        "cap_microcredits": None,
        "allowed_models": (),
        "charged_microcredits": 0,
        "reserved_microcredits": 0,
        "create_time_us": NOW_US,
        "revoke_time_us": None,
    }
    row = Authorization(authorization_id=authorization_id, subscriber_id=subscriber_id, **(defaults | values))
    return AddAuthorization(authorization=row)


def a_key(
    key_id: str = "key-1",
    authorization_id: str = "auth-1",
    secret_hash: bytes = b"h" * 32,
    *,
    prefix: str = "mg_abcdef",
    expire_time_us: int | None = None,
) -> ApiKey:
    return ApiKey(
        key_id=key_id,
        secret_hash=secret_hash,
        authorization_id=authorization_id,
        create_time_us=NOW_US,
        revoke_time_us=None,
        prefix=prefix,
        expire_time_us=expire_time_us,
    )


def a_reserve(reservation_id: str = "res-1", **values: Any) -> Reserve:
    defaults: dict[str, Any] = {
        "subscriber_id": "alice",
        "authorization_id": "auth-1",
        "request_id": f"request-of-{reservation_id}",
        "content_hash": b"content",
        "owner": OWNER,
        "model_id": "model-1",
        "provider_id": "provider-1",
        "counting_source": CountingSource.TOKENIZER,
        "rate_card_id": CARD.rate_card_id,
        "minimum_microcredits": 10,
        "wanted_microcredits": 100,
        "limit_microcredits": 10_000,
        "capture_microcredits": 9,
        "capture_usage": tokens(9),
        "now_us": NOW_US,
    }
    return Reserve(reservation_id=reservation_id, **(defaults | values))


def a_capture(target: int, reservation_id: str = "res-1", **values: Any) -> Capture:
    defaults: dict[str, Any] = {
        "subscriber_id": "alice",
        "owner": OWNER,
        "target_microcredits": target,
        "target_usage": tokens(target),
        "wanted_microcredits": target,
        "delivered_microcredits": 0,
        "now_us": NOW_US,
    }
    return Capture(reservation_id=reservation_id, **(defaults | values))


def a_settle(charged: int | None, reservation_id: str = "res-1", **values: Any) -> Settle:
    """Charge that much; None releases."""
    captured = values.pop("captured", 0)
    settlement = Settlement(
        charge_id=values.pop("charge_id", f"charge-of-{reservation_id}"),
        charged_microcredits=charged or 0,
        usage_counted=tokens(charged or 0),
        usage_reported=None,
        usage_mismatch=False,
        attempts=(Attempt(backend_id="backend-1", problem="", prompt_tokens=3, milliseconds=40),),
        finish_reason=FinishReason.STOP,
        captured_microcredits=captured,
    )
    defaults: dict[str, Any] = {
        "subscriber_id": "alice",
        "owner": OWNER,
        "close_cause": CloseCause.FINISHED,
        "settlement": None if charged is None else settlement,
        "now_us": NOW_US,
    }
    return Settle(reservation_id=reservation_id, **(defaults | values))


REASON = {"reason": "as the test says", "actor": "the test"}
DAY_SECONDS = 86_400


def a_refund(amount: int, charge_id: str = "charge-of-res-1", correction_id: str = "refund-1", **values: Any) -> Refund:
    defaults: dict[str, Any] = {"subscriber_id": "alice", "grant_seconds": DAY_SECONDS, "now_us": NOW_US} | REASON
    content: dict[str, Any] = {"charge_id": charge_id, "amount_microcredits": amount} | defaults | values
    return Refund(correction_id=correction_id, **content)


def an_adjustment(amount: int, correction_id: str = "adjustment-1", **values: Any) -> Adjust:
    defaults: dict[str, Any] = {"subscriber_id": "alice", "grant_seconds": None, "now_us": NOW_US} | REASON
    return Adjust(correction_id=correction_id, amount_microcredits=amount, **(defaults | values))


def a_reversal(grant_id: str = "grant-1", correction_id: str = "reversal-1", **values: Any) -> Reverse:
    defaults: dict[str, Any] = {"subscriber_id": "alice", "now_us": NOW_US} | REASON
    return Reverse(correction_id=correction_id, grant_id=grant_id, **(defaults | values))


def a_state_change(correction_id: str, state: WalletState, **values: Any) -> SetWalletState:
    defaults: dict[str, Any] = {"subscriber_id": "alice", "now_us": NOW_US} | REASON
    return SetWalletState(correction_id=correction_id, state=state, **(defaults | values))


async def open_wallet(store: LedgerStore, *grants: AddGrant, **consent: Any) -> None:
    """Alice, her consent, the price list, and these grants."""
    await store.add_rate_cards([CARD])
    await store.add_subscriber(a_wallet())
    await store.add_authorization(a_consent(**consent))
    for grant in grants:
        await store.add_grant(grant)


async def reserve(store: LedgerStore, reservation_id: str = "res-1", **values: Any) -> Reservation:
    """A reservation that must be granted."""
    outcome = await store.reserve(a_reserve(reservation_id, **({"owner": store.owner} | values)))
    assert isinstance(outcome, Reserved)
    return outcome.reservation


async def available(store: LedgerStore, now_us: int = NOW_US, subscriber_id: str = "alice") -> int:
    return (await store.balance(subscriber_id, None, now_us)).available_microcredits


async def differences(store: LedgerStore | SqliteLedgerReader) -> list[Difference]:
    """What the audit of the whole store finds."""
    audit = Audit()
    found: list[Difference] = []
    async for ledger in store.audit():
        found += await audit.check(ledger)
    return [*found, *audit.check_totals()]

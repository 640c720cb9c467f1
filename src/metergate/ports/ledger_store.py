"""The ledger on durable storage."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from metergate.core.accounts import AccountBalance
from metergate.core.audit import SubscriberLedger
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    EraseSubscriber,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    Settle,
    Settled,
    SetWalletState,
)
from metergate.core.rating import RateCard
from metergate.core.reservation import Owner, Reservation
from metergate.core.rows import ApiKey, Authorization, Charge, Correction, Erasure, Grant, Transfer, Wallet
from metergate.ports.ledger_rows import (
    ALL_DAYS,
    Balance,
    ChargeFilter,
    Days,
    Grantee,
    Page,
    Recovery,
    Times,
    TransferFilter,
    UsageComparison,
)


class LedgerStore(Protocol):
    """The ledger on durable storage. Every writing verb is one atomic transaction, acknowledged after its commit.

    A cancelled caller does not stop an operation that was handed over. Every verb raises StoreUnavailable when storage
    fails; its outcome is then unknown, and every reservation of this owner is left to recovery. The operations' own
    refusals are the errors that ``core.ledger`` names.
    """

    @property
    def owner(self) -> Owner:
        """This process in its present epoch; a new epoch begins whenever the store had to be opened again."""
        ...

    @property
    def content_key(self) -> bytes:
        """The secret this store keys content hashes with (L11)."""
        ...

    async def check(self) -> None:
        """Write durably something that changes nothing: StoreUnavailable tells that nothing else can be written."""
        ...

    async def close(self) -> None:
        """Finish what was handed over and close."""
        ...

    # --- credit -----------------------------------------------------------------------------------------------------

    # The three of every request return an awaitable that need not be a coroutine: an adapter that has a future already
    # spares the request a task.

    def reserve(self, operation: Reserve, *, is_urgent: bool = True) -> Awaitable[Reserved | Replayed]:
        """Set credit aside for a request. One that is not urgent may wait some milliseconds for others to join it."""
        ...

    def capture(self, operation: Capture) -> Awaitable[Captured]:
        """Debit a reservation before a delivery."""
        ...

    def settle(self, operation: Settle) -> Awaitable[Settled]:
        """Close a reservation."""
        ...

    async def add_grant(self, operation: AddGrant) -> Grant:
        """Add credits to a wallet."""
        ...

    async def recover_abandoned(self, is_running: Callable[[str], bool]) -> Recovery:
        """Settle, at what was captured, every open reservation that nobody runs any more (L5).

        Of this owner these are the ones that ``is_running`` does not know, by id; of others, those whose owner's lease
        is over (``core.leases``). One that cannot be settled is logged and left for the next time.
        """
        ...

    async def prune_reservations(self, closed_before_us: int, *, count_max: int) -> int:
        """Remove the oldest closed reservations, at most so many, that were closed before a time; how many.

        Their charges stay, and with them the ids that answer a repeated request (L4).
        """

    async def expire_grants(self, now_us: int, limit: int) -> int:
        """Move on what remains of grants whose time is over, as the next change of their wallets would.

        Each grant is dealt with once. Returns how many were; fewer than ``limit`` if these were all.
        """
        ...

    # --- corrections ------------------------------------------------------------------------------------------------

    async def refund(self, operation: Refund) -> Correction:
        """Give back part of a charge."""
        ...

    async def adjust(self, operation: Adjust) -> Correction:
        """Give credit, or take what is available."""
        ...

    async def reverse(self, operation: Reverse) -> Correction:
        """Take back a grant whose payment was taken back."""
        ...

    async def set_wallet_state(self, operation: SetWalletState) -> Correction:
        """Stop a wallet, or let it be spent from again."""
        ...

    # --- setting up -------------------------------------------------------------------------------------------------

    async def add_subscriber(self, operation: AddSubscriber) -> Wallet:
        """Open a wallet."""
        ...

    async def erase_subscriber(self, operation: EraseSubscriber) -> Erasure:
        """Forget a subscriber: ReservationsOpen while a request of it runs; ResourceNotFound; RequestInvalid.

        ChargesTooMany if it has more than the operation allows. Nothing that names it is left on the storage, at the
        latest when reads that began before have ended; unless the answer says that it is to be compacted first.
        """
        ...

    async def add_authorization(self, operation: AddAuthorization) -> Authorization:
        """Record a subscriber's consent."""
        ...

    async def add_key(self, key: ApiKey) -> ApiKey:
        """Record a key's hash; AuthorizationRevoked if its authorization was revoked."""
        ...

    async def revoke_key(self, key_id: str, now_us: int) -> ApiKey:
        """Revoke a key; ResourceNotFound if there is none. A second revocation keeps the first's time."""
        ...

    async def revoke_authorization(self, authorization_id: str, now_us: int) -> int:
        """Revoke an authorization with all its keys; ResourceNotFound if there is none. Returns when it first was."""
        ...

    async def record_key_uses(self, use_times_us: Mapping[str, int]) -> None:
        """Record when keys, by id, were last used; never earlier than was recorded. Unknown keys are left out."""
        ...

    async def add_rate_cards(self, cards: Sequence[RateCard]) -> None:
        """Record rate cards for audits; IdConflict if one was recorded with other prices: cards are immutable."""
        ...

    # --- reading ----------------------------------------------------------------------------------------------------

    async def find_grantee(self, secret_hash: bytes) -> Grantee | None:
        """Whom a key stands for, revoked or not; None if the key is unknown."""
        ...

    async def find_request(
        self, subscriber_id: str, authorization_id: str, request_id: str, now_us: int
    ) -> Replayed | Reservation | None:
        """What became of a request: its charge, or the reservation that it runs with; None: neither, so it may run."""
        ...

    async def list_keys(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grantee]:
        """Every key that may spend of a wallet, expired and revoked ones included, by key id."""
        ...

    async def balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        """The wallet now. ResourceNotFound without such a subscriber."""
        ...

    async def list_grants(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Grant]:
        """Grants, newest first."""
        ...

    async def list_corrections(self, subscriber_id: str, *, cursor: str | None, size: int) -> Page[Correction]:
        """Corrections, newest first."""
        ...

    async def list_charges(
        self, subscriber_id: str, where: ChargeFilter, *, cursor: str | None, size: int
    ) -> Page[Charge]:
        """Charges, newest first."""
        ...

    async def get_charge(self, subscriber_id: str, charge_id: str) -> Charge:
        """One charge of this subscriber; ResourceNotFound otherwise."""
        ...

    async def list_transfers(
        self, subscriber_id: str, where: TransferFilter, *, cursor: str | None, size: int
    ) -> Page[Transfer]:
        """Transfers, newest first."""
        ...

    async def account_balances(self, days: Days = ALL_DAYS) -> Mapping[str, AccountBalance]:
        """What moved in and out of each account on these days, by account; GRANTS_ACCOUNT is all grants together."""
        ...

    # --- audit ------------------------------------------------------------------------------------------------------

    def read_charges(self, times: Times) -> AsyncGenerator[Sequence[Charge], None]:
        """Every charge that was settled in a range of time, in pages, in one consistent view of the store."""
        ...

    def read_transfers(self, times: Times) -> AsyncGenerator[Sequence[Transfer], None]:
        """Every transfer that was posted in a range of time, in pages, in one consistent view of the store."""
        ...

    async def count_subscribers(self) -> int:
        """How many wallets there are."""
        ...

    async def compare_usage(self, settle_time_us_min: int) -> tuple[UsageComparison, ...]:
        """Counted beside reported, of every charge settled since: by day, backend, model. Reads all of them."""
        ...

    def audit(self, *, after: str | None = None) -> AsyncGenerator[SubscriberLedger, None]:
        """The books of every subscriber, or of all after one, by id, in one consistent view of the store."""
        ...

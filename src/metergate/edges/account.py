"""AccountService: the caller's own wallet. An app sees what it may still spend and its own charges, nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from metergate.core.errors import RequestInvalid, ResourceNotFound, SubscriberKeyRequired, Violation
from metergate.core.rows import Authorization, Channel, Charge, Grant, GrantSource, Transfer, TransferKind
from metergate.edges.calls import Behaviour, Context
from metergate.edges.pages import PageTokens, page_rows, read_time_us
from metergate.edges.resources import (
    app_name,
    charge_name,
    grant_name,
    model_name,
    parse_app,
    parse_charge,
    parse_model,
    parse_subscriber,
    parse_wallet,
    provider_name,
    rate_card_name,
    transfer_name,
    wallet_name,
)
from metergate.edges.responses import CLOSE_CAUSES, COUNTING_SOURCES, FINISH_REASONS, timestamp, usage_message
from metergate.edges.violations import Violations
from metergate.ports import ChargeFilter, Clock, LedgerStore, TransferFilter
from metergate.v1 import account_pb2

GRANT_SOURCES = {source: account_pb2.GrantSource.Value(f"GRANT_SOURCE_{source}") for source in GrantSource}
CHANNELS = {channel: account_pb2.Channel.Value(f"CHANNEL_{channel}") for channel in Channel}
_TRANSFER_KINDS = {kind: account_pb2.TransferKind.Value(f"TRANSFER_KIND_{kind}") for kind in TransferKind}


class AccountServicer:
    """Shows the caller its own wallet."""

    service: ServiceDescriptor = account_pb2.DESCRIPTOR.services_by_name["AccountService"]

    def __init__(self, store: LedgerStore, clock: Clock, page_tokens: PageTokens) -> None:
        self._store = store
        self._clock = clock
        self._page_tokens = page_tokens

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does."""
        return {
            "GetWallet": self._get_wallet,
            "ListGrants": self._list_grants,
            "ListCharges": self._list_charges,
            "GetCharge": self._get_charge,
            "ListTransfers": self._list_transfers,
        }

    async def _get_wallet(
        self, caller: Authorization, request: account_pb2.GetWalletRequest, context: Context
    ) -> account_pb2.GetWalletResponse:
        _check_own(request.name, parse_wallet, "name", "subscribers/{subscriber}/wallet", caller)
        balance = await self._store.balance(caller.subscriber_id, caller.authorization_id, self._clock.now_us())
        wallet = account_pb2.Wallet(
            name=wallet_name(caller.subscriber_id), spendable_microcredits=balance.spendable_microcredits
        )
        if caller.is_subscribers_own():
            wallet.available_microcredits = balance.available_microcredits
            wallet.reserved_microcredits = balance.reserved_microcredits
        return account_pb2.GetWalletResponse(wallet=wallet)

    async def _list_grants(
        self, caller: Authorization, request: account_pb2.ListGrantsRequest, context: Context
    ) -> account_pb2.ListGrantsResponse:
        _check_parent(request.parent, caller)
        _check_subscribers_own(caller)
        query = ("grants", caller.subscriber_id)
        page = await self._store.list_grants(
            caller.subscriber_id,
            cursor=self._page_tokens.read(request.page_token, *query),
            size=page_rows(request.page_size),
        )
        return account_pb2.ListGrantsResponse(
            grants=[grant_message(grant) for grant in page.rows],
            next_page_token=self._page_tokens.write(page.next_cursor, *query),
        )

    async def _list_charges(
        self, caller: Authorization, request: account_pb2.ListChargesRequest, context: Context
    ) -> account_pb2.ListChargesResponse:
        _check_parent(request.parent, caller)
        wanted = _read_filter(request.filter)
        size = page_rows(request.page_size)
        where = ChargeFilter(
            app_id=wanted.app_id or caller.app_id or None,
            model_id=wanted.model_id,
            settle_time_us_min=wanted.time_us_min,
            settle_time_us_max=wanted.time_us_max,
        )
        query = ("charges", caller.subscriber_id, where)
        cursor = self._page_tokens.read(request.page_token, *query)
        if caller.app_id and where.app_id != caller.app_id:
            return account_pb2.ListChargesResponse()  # what an app may see of another app
        page = await self._store.list_charges(caller.subscriber_id, where, cursor=cursor, size=size)
        return account_pb2.ListChargesResponse(
            charges=[_charge_message(charge) for charge in page.rows],
            next_page_token=self._page_tokens.write(page.next_cursor, *query),
        )

    async def _get_charge(
        self, caller: Authorization, request: account_pb2.GetChargeRequest, context: Context
    ) -> account_pb2.GetChargeResponse:
        ids = parse_charge(request.name)
        if ids is None:
            raise RequestInvalid(Violation("name", "must be subscribers/{subscriber}/charges/{charge}"))
        subscriber_id, charge_id = ids
        if subscriber_id != caller.subscriber_id:
            raise ResourceNotFound(resource_name=request.name)
        charge = await self._store.get_charge(subscriber_id, charge_id)
        if caller.app_id and charge.app_id != caller.app_id:
            raise ResourceNotFound(resource_name=request.name)
        return account_pb2.GetChargeResponse(charge=_charge_message(charge))

    async def _list_transfers(
        self, caller: Authorization, request: account_pb2.ListTransfersRequest, context: Context
    ) -> account_pb2.ListTransfersResponse:
        _check_parent(request.parent, caller)
        _check_subscribers_own(caller)
        wanted = _read_filter(request.filter)
        where = TransferFilter(
            app_id=wanted.app_id,
            model_id=wanted.model_id,
            create_time_us_min=wanted.time_us_min,
            create_time_us_max=wanted.time_us_max,
        )
        query = ("transfers", caller.subscriber_id, where)
        page = await self._store.list_transfers(
            caller.subscriber_id,
            where,
            cursor=self._page_tokens.read(request.page_token, *query),
            size=page_rows(request.page_size),
        )
        return account_pb2.ListTransfersResponse(
            transfers=[_transfer_message(transfer) for transfer in page.rows],
            next_page_token=self._page_tokens.write(page.next_cursor, *query),
        )


# --- whose wallet ---------------------------------------------------------------------------------------------------


def _check_parent(parent: str, caller: Authorization) -> None:
    _check_own(parent, parse_subscriber, "parent", "subscribers/{subscriber}", caller)


def _check_own(name: str, parse: Callable[[str], str | None], field: str, form: str, caller: Authorization) -> None:
    """Another subscriber's resources are not there, whether they exist or not."""
    if not name:
        return
    subscriber_id = parse(name)
    if subscriber_id is None:
        raise RequestInvalid(Violation(field, f"must be {form}"))
    if subscriber_id != caller.subscriber_id:
        raise ResourceNotFound(resource_name=name)


def _check_subscribers_own(caller: Authorization) -> None:
    if not caller.is_subscribers_own():
        raise SubscriberKeyRequired


# --- which rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filter:
    app_id: str | None
    model_id: str | None
    time_us_min: int | None
    time_us_max: int | None


def _read_filter(message: account_pb2.ListFilter) -> _Filter:
    violations = Violations()
    time_us_min = time_us_max = None
    if message.HasField("start_time"):
        time_us_min = read_time_us(message.start_time, "filter.start_time", violations)
    if message.HasField("end_time"):
        time_us_max = read_time_us(message.end_time, "filter.end_time", violations)
    if time_us_min is not None and time_us_max is not None and time_us_min >= time_us_max:
        violations.add("filter.start_time", "must be before end_time")
    app_id = parse_app(message.app) if message.app else None
    if message.app and app_id is None:
        violations.add("filter.app", "must be apps/{app}")
    model_id = parse_model(message.model) if message.model else None
    if message.model and model_id is None:
        violations.add("filter.model", "must be models/{model}")
    violations.check()
    return _Filter(app_id=app_id, model_id=model_id, time_us_min=time_us_min, time_us_max=time_us_max)


# --- rows to the wire -----------------------------------------------------------------------------------------------


def grant_message(grant: Grant) -> account_pb2.Grant:
    """A grant as it is now."""
    return account_pb2.Grant(
        name=grant_name(grant.subscriber_id, grant.grant_id),
        source=GRANT_SOURCES[grant.source],
        priority=grant.priority,
        amount_microcredits=grant.amount_microcredits,
        remaining_microcredits=grant.remaining_microcredits,
        effective_time=timestamp(grant.effective_time_us),
        expire_time=None if grant.expire_time_us is None else timestamp(grant.expire_time_us),
        create_time=timestamp(grant.create_time_us),
        rollover_microcredits_max=grant.rollover_microcredits_max,
        rollover_seconds=grant.rollover_seconds,
        reverse_time=None if grant.reverse_time_us is None else timestamp(grant.reverse_time_us),
    )


def _charge_message(charge: Charge) -> account_pb2.Charge:
    return account_pb2.Charge(
        name=charge_name(charge.subscriber_id, charge.charge_id),
        request_id=charge.request_id,
        app=app_name(charge.app_id),
        channel=CHANNELS[charge.channel],
        model=model_name(charge.model_id),
        provider=provider_name(charge.provider_id),
        usage_counted=usage_message(charge.usage_counted),
        usage_reported=None if charge.usage_reported is None else usage_message(charge.usage_reported),
        usage_mismatch=charge.usage_mismatch,
        counting_source=COUNTING_SOURCES[charge.counting_source],
        rate_card=rate_card_name(charge.model_id, charge.rate_card_id),
        charged_microcredits=charge.charged_microcredits,
        finish_reason=FINISH_REASONS[charge.finish_reason],
        close_cause=CLOSE_CAUSES[charge.close_cause],
        create_time=timestamp(charge.create_time_us),
        settle_time=timestamp(charge.settle_time_us),
    )


def _transfer_message(transfer: Transfer) -> account_pb2.Transfer:
    return account_pb2.Transfer(
        name=transfer_name(transfer.subscriber_id, transfer.sequence),
        kind=_TRANSFER_KINDS[transfer.kind],
        debit_account=transfer.debit_account,
        credit_account=transfer.credit_account,
        amount_microcredits=transfer.amount_microcredits,
        grant=grant_name(transfer.subscriber_id, transfer.grant_id),
        charge=charge_name(transfer.subscriber_id, transfer.charge_id),
        create_time=timestamp(transfer.create_time_us),
    )

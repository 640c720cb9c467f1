"""The corrections of AdminService: refunds, adjustments, reversals, and wallets that are stopped."""

from collections.abc import Mapping
from typing import TypedDict

from metergate.core.operations import Adjust, Refund, Reverse, SetWalletState
from metergate.core.rows import Correction, CorrectionKind, WalletState
from metergate.edges.calls import Behaviour, Context
from metergate.edges.reading import read_id, read_name, read_names
from metergate.edges.resources import (
    charge_name,
    correction_name,
    grant_name,
    parse_charge,
    parse_grant,
    parse_wallet,
)
from metergate.edges.responses import timestamp
from metergate.edges.violations import Violations
from metergate.ports import Clock, LedgerStore
from metergate.v1 import admin_pb2

CORRECTION_KINDS = {kind: admin_pb2.CorrectionKind.Value(f"CORRECTION_KIND_{kind}") for kind in CorrectionKind}

_WALLET_FORM = "subscribers/{subscriber}/wallet"

_SetStateRequest = admin_pb2.SuspendWalletRequest | admin_pb2.ResumeWalletRequest
_Request = (
    admin_pb2.RefundChargeRequest | admin_pb2.AdjustWalletRequest | admin_pb2.ReverseGrantRequest | _SetStateRequest
)


class _Asked(TypedDict):
    """What every correction is asked for with."""

    correction_id: str
    subscriber_id: str
    reason: str
    actor: str
    now_us: int


class Corrections:
    """Reads what is asked, and answers with the record of it."""

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does."""
        return {
            "RefundCharge": self._refund_charge,
            "AdjustWallet": self._adjust_wallet,
            "ReverseGrant": self._reverse_grant,
            "SuspendWallet": self._suspend_wallet,
            "ResumeWallet": self._resume_wallet,
        }

    async def _refund_charge(
        self, caller: object, request: admin_pb2.RefundChargeRequest, context: Context
    ) -> admin_pb2.RefundChargeResponse:
        violations = Violations()
        form = "subscribers/{subscriber}/charges/{charge}"
        subscriber_id, charge_id = read_names(parse_charge, request.name, "name", form, violations)
        operation = Refund(
            **self._asked(request, subscriber_id, violations),
            charge_id=charge_id,
            amount_microcredits=request.amount_microcredits,
            grant_seconds=request.grant_seconds,
        )
        return admin_pb2.RefundChargeResponse(correction=correction_message(await self._store.refund(operation)))

    async def _adjust_wallet(
        self, caller: object, request: admin_pb2.AdjustWalletRequest, context: Context
    ) -> admin_pb2.AdjustWalletResponse:
        violations = Violations()
        subscriber_id = read_name(parse_wallet, request.name, "name", _WALLET_FORM, violations)
        operation = Adjust(
            **self._asked(request, subscriber_id, violations),
            amount_microcredits=request.amount_microcredits,
            grant_seconds=request.grant_seconds if request.HasField("grant_seconds") else None,
        )
        return admin_pb2.AdjustWalletResponse(correction=correction_message(await self._store.adjust(operation)))

    async def _reverse_grant(
        self, caller: object, request: admin_pb2.ReverseGrantRequest, context: Context
    ) -> admin_pb2.ReverseGrantResponse:
        violations = Violations()
        form = "subscribers/{subscriber}/grants/{grant}"
        subscriber_id, grant_id = read_names(parse_grant, request.name, "name", form, violations)
        operation = Reverse(**self._asked(request, subscriber_id, violations), grant_id=grant_id)
        return admin_pb2.ReverseGrantResponse(correction=correction_message(await self._store.reverse(operation)))

    async def _suspend_wallet(
        self, caller: object, request: admin_pb2.SuspendWalletRequest, context: Context
    ) -> admin_pb2.SuspendWalletResponse:
        correction = await self._set_state(request, WalletState.SUSPENDED)
        return admin_pb2.SuspendWalletResponse(correction=correction)

    async def _resume_wallet(
        self, caller: object, request: admin_pb2.ResumeWalletRequest, context: Context
    ) -> admin_pb2.ResumeWalletResponse:
        correction = await self._set_state(request, WalletState.ACTIVE)
        return admin_pb2.ResumeWalletResponse(correction=correction)

    async def _set_state(self, request: _SetStateRequest, state: WalletState) -> admin_pb2.Correction:
        violations = Violations()
        subscriber_id = read_name(parse_wallet, request.name, "name", _WALLET_FORM, violations)
        operation = SetWalletState(**self._asked(request, subscriber_id, violations), state=state)
        return correction_message(await self._store.set_wallet_state(operation))

    def _asked(self, request: _Request, subscriber_id: str, violations: Violations) -> _Asked:
        """What is asked for; raises what was wrong with the request, of its name too."""
        correction_id = read_id(request.correction_id, "correction_id", violations)
        violations.check()
        return {
            "correction_id": correction_id,
            "subscriber_id": subscriber_id,
            "reason": request.reason,
            "actor": request.actor,
            "now_us": self._clock.now_us(),
        }


def correction_message(correction: Correction) -> admin_pb2.Correction:
    """The record as it is sent."""
    subscriber_id = correction.subscriber_id
    return admin_pb2.Correction(
        name=correction_name(subscriber_id, correction.correction_id),
        kind=CORRECTION_KINDS[correction.kind],
        charge=charge_name(subscriber_id, correction.charge_id),
        grant=grant_name(subscriber_id, correction.grant_id) if correction.grant_id else "",
        amount_microcredits=correction.amount_microcredits,
        shortfall_microcredits=correction.shortfall_microcredits,
        grant_seconds=correction.grant_seconds,
        reason=correction.reason,
        actor=correction.actor,
        create_time=timestamp(correction.create_time_us),
    )

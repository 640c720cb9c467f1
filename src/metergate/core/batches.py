"""Operations as a store takes them together: what they are, what their ids may be, and which are decided first."""

from metergate.core.grants import OWN_MARK
from metergate.core.ids import check_ids, check_no_mark, check_own_ids
from metergate.core.operations import (
    AddAuthorization,
    AddGrant,
    AddSubscriber,
    Adjust,
    Capture,
    Captured,
    Expire,
    Recover,
    Refund,
    Replayed,
    Reserve,
    Reserved,
    Reverse,
    RevokeAuthorization,
    Settle,
    Settled,
    Settlement,
    SetWalletState,
)
from metergate.core.rows import Authorization, Correction, Grant, Wallet

Operation = (
    Capture
    | Settle
    | Recover
    | Reserve
    | AddGrant
    | AddSubscriber
    | AddAuthorization
    | RevokeAuthorization
    | Refund
    | Adjust
    | Reverse
    | SetWalletState
    | Expire
)
Outcome = Captured | Settled | Reserved | Replayed | Grant | Wallet | Authorization | Correction


_PLACES: dict[type[Operation], int] = {Capture: 0, Settle: 1, Recover: 1}


def place(operation: Operation) -> int:
    """Where in its batch an operation is decided: captures, then settles and recoveries, then the rest.

    Those of one place in order of arrival. Running streams come first, and a new reservation finds what a settled one
    gave back.
    """
    return _PLACES.get(type(operation), 2)


def subscriber_of(operation: Operation) -> str:
    """Whose wallet it is about; "" if it names only an authorization."""
    match operation:
        case AddGrant(grant=grant):
            return grant.subscriber_id
        case AddSubscriber(wallet=wallet):
            return wallet.subscriber_id
        case AddAuthorization(authorization=authorization):
            return authorization.subscriber_id
        case RevokeAuthorization():
            return ""
        case _:
            return operation.subscriber_id


def check_ids_of(operation: Operation) -> None:
    """Refuse an operation that would bring in a text that is no id, before any row is looked up by it.

    RequestInvalid; LedgerInvariantBroken for an id that the gateway itself made.
    """
    match operation:
        case Reserve():
            check_ids(request_id=operation.request_id)
            check_own_ids(reservation_id=operation.reservation_id)
        case Settle(settlement=Settlement(charge_id=charge_id)) | Recover(charge_id=charge_id):
            check_own_ids(charge_id=charge_id)
        case AddGrant(grant=grant):
            check_ids(subscriber_id=grant.subscriber_id, grant_id=grant.grant_id)
            check_no_mark(OWN_MARK, grant_id=grant.grant_id)
        case Refund() | Adjust() | Reverse() | SetWalletState():
            check_ids(correction_id=operation.correction_id, reason=operation.reason, actor=operation.actor)
        case AddSubscriber(wallet=wallet):
            check_ids(subscriber_id=wallet.subscriber_id)
        case AddAuthorization(authorization=authorization):
            check_ids(
                subscriber_id=authorization.subscriber_id,
                authorization_id=authorization.authorization_id,
                app_id=authorization.app_id or "the subscriber's own",
            )
            for model_id in authorization.allowed_models:
                check_ids(allowed_models=model_id)

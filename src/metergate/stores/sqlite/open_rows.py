"""The writer's memory: its open reservations and who pays for them, as last committed, so that they are not read again.

Nobody else may change them: the file has one writer. After a failed commit the memory is gone with the connection (L8).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from metergate.core.books import Books, GrantKey, RequestKey, request_key
from metergate.core.reservation import Reservation, ReservationState
from metergate.core.rows import Authorization, Grant, Wallet


@dataclass(slots=True)
class Payer:
    """A subscriber with an open reservation."""

    wallet: Wallet
    grants: dict[str, Grant] = field(default_factory=dict)  # at least all that have credit left
    authorizations: dict[str, Authorization] = field(default_factory=dict)  # those that were used
    reservation_ids: set[str] = field(default_factory=set)  # ACTIVE


class OpenRows:
    """As much as there are open reservations: with its last one, a subscriber is forgotten."""

    def __init__(self) -> None:
        self.reservations: dict[str, Reservation] = {}  # ACTIVE ones, by id
        self.payers: dict[str, Payer] = {}  # by subscriber
        self.are_all = False  # whether no other reservation in the file is ACTIVE: none that recovery could not settle
        self._by_request: dict[RequestKey, str] = {}

    def active(self, key: RequestKey) -> Reservation | None:
        """The reservation under which a request runs."""
        reservation_id = self._by_request.get(key)
        return None if reservation_id is None else self.reservations[reservation_id]

    def keep(self, books: Books) -> None:
        """Remember what was committed of a batch."""
        for reservation in (*books.reservations.added.values(), *books.reservations.changed.values()):
            if reservation.state is ReservationState.ACTIVE:
                self._keep(books, reservation)
            else:
                self._forget(reservation)
        for wallet in books.wallets.changed.values():
            payer = self.payers.get(wallet.subscriber_id)
            if payer is not None:
                payer.wallet = wallet
        for authorization in (*books.authorizations.added.values(), *books.authorizations.changed.values()):
            payer = self.payers.get(authorization.subscriber_id)
            if payer is not None:
                payer.authorizations[authorization.authorization_id] = authorization
        self._keep_grants((*books.grants.added.items(), *books.grants.changed.items()))

    def keep_captured(self, reservations: dict[str, Reservation]) -> None:
        """Remember committed captures that changed no other row."""
        self.reservations.update(reservations)

    def _keep(self, books: Books, reservation: Reservation) -> None:
        reservation_id = reservation.reservation_id
        if reservation_id not in self.reservations:
            self._by_request[request_key(reservation)] = reservation_id
        self.reservations[reservation_id] = reservation
        payer = self.payers.get(reservation.subscriber_id) or self._new_payer(books, reservation.subscriber_id)
        if payer is not None:
            payer.reservation_ids.add(reservation_id)

    def _new_payer(self, books: Books, subscriber_id: str) -> Payer | None:
        """None if the batch did not load the whole payer: then it is read when it is needed."""
        wallet = books.wallets.get(subscriber_id)
        if wallet is None:
            return None
        payer = self.payers[subscriber_id] = Payer(wallet)
        payer.grants = {grant.grant_id: grant for grant in books.grants_of(subscriber_id)}
        return payer

    def _keep_grants(self, grants: Iterable[tuple[GrantKey, Grant]]) -> None:
        for (subscriber_id, grant_id), grant in grants:
            payer = self.payers.get(subscriber_id)
            if payer is None:
                continue
            if grant.remaining_microcredits > 0:
                payer.grants[grant_id] = grant
            else:
                payer.grants.pop(grant_id, None)  # or a wallet that is never at rest would keep all it ever had

    def _forget(self, reservation: Reservation) -> None:
        self.reservations.pop(reservation.reservation_id, None)
        key = request_key(reservation)
        if self._by_request.get(key) == reservation.reservation_id:  # not of one that runs the request again
            del self._by_request[key]
        payer = self.payers.get(reservation.subscriber_id)
        if payer is not None:
            payer.reservation_ids.discard(reservation.reservation_id)
            if not payer.reservation_ids:
                del self.payers[reservation.subscriber_id]

"""Open reservations that nobody runs any more, and closed ones that are old: found and removed in bounded pieces."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from metergate.core.reservation import Owner
from metergate.stores.sqlite import codec

# Open reservations that one read brings into memory.
PAGE_ROWS = 512

OPEN_AFTER = f"""
    SELECT reservation_id, subscriber_id, owner_id, owner_epoch, authorization_id, request_id
    FROM reservations INDEXED BY reservations_active
    WHERE state = 'ACTIVE' AND (subscriber_id, authorization_id, request_id) > (?, ?, ?)
    ORDER BY subscriber_id, authorization_id, request_id LIMIT {PAGE_ROWS}
"""  # noqa: S608 - constants only
HEARTBEATS = "SELECT owner_id, epoch, heartbeat_time_us FROM owners"

# In order of age: the first that are too young end the search. A settled one without a charge is evidence, and stays.
CLOSED_OLDEST = """
    SELECT rowid FROM (
        SELECT rowid, reservation_id, state, close_time_us FROM reservations
        WHERE state <> 'ACTIVE' ORDER BY rowid LIMIT ?2
    ) AS oldest
    WHERE close_time_us < ?1 AND (
        state = 'RELEASED' OR EXISTS (SELECT 1 FROM charges WHERE charges.reservation_id = oldest.reservation_id)
    )
"""
DELETE_RESERVATION = "DELETE FROM reservations WHERE rowid = ?"
RAISE_PRUNED_BEFORE = """
    UPDATE meta SET reservations_pruned_before_us = max(reservations_pruned_before_us, ?)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenReservation:
    """What must be known of an open reservation to settle it."""

    reservation_id: str
    subscriber_id: str
    owner: Owner


def open_reservations(connection: sqlite3.Connection) -> Iterator[OpenReservation]:
    """Every ACTIVE reservation, by subscriber."""
    position: codec.Columns = ("", "", "")
    while rows := connection.execute(OPEN_AFTER, position).fetchall():
        for reservation_id, subscriber_id, owner_id, epoch, authorization_id, request_id in rows:
            position = (subscriber_id, authorization_id, request_id)
            owner = Owner(owner_id=owner_id, epoch=epoch)
            yield OpenReservation(reservation_id=reservation_id, subscriber_id=subscriber_id, owner=owner)


def heartbeats(connection: sqlite3.Connection) -> dict[Owner, int]:
    """When each owner last said that it lives, in microseconds since the epoch."""
    return {
        Owner(owner_id=owner_id, epoch=epoch): time_us for owner_id, epoch, time_us in connection.execute(HEARTBEATS)
    }


def prune(connection: sqlite3.Connection, closed_before_us: int, count_max: int) -> int:
    """Remove the oldest closed reservations, at most so many, that were closed before a time; how many were removed.

    Within a transaction. Charges without a reservation are from then on no difference if they are older than that.
    """
    rows = connection.execute(CLOSED_OLDEST, (closed_before_us, count_max)).fetchall()
    if rows:
        connection.executemany(DELETE_RESERVATION, rows)
        connection.execute(RAISE_PRUNED_BEFORE, (closed_before_us,))
    return len(rows)

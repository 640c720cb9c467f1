"""Who opens a ledger: its secret, and a new epoch for whoever writes it from now on."""

import secrets
import sqlite3

from metergate.core.reservation import Owner

# Made when the first owner opens it. A lost one is not replaced: keyed by another, requests that were charged would
# look like new ones.
MAKE_CONTENT_KEY = """
    INSERT INTO meta (only_row, content_key, create_time_us) SELECT 1, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM owners) ON CONFLICT DO NOTHING
"""
CONTENT_KEY = "SELECT content_key FROM meta"
BEGIN_EPOCH = """
    INSERT INTO owners (owner_id, epoch, start_time_us, heartbeat_time_us)
    SELECT ?, 1 + coalesce(max(epoch), 0), ?, ? FROM owners RETURNING epoch
"""
# Reservations are stored in the order of epochs: whoever is newer than the last one's owner has none, and whoever is
# older than the first one's has none any more.
FORGET_IDLE_OWNERS = """
    DELETE FROM owners WHERE epoch < ? AND (
        epoch > coalesce((SELECT owner_epoch FROM reservations ORDER BY rowid DESC LIMIT 1), 0)
        OR epoch < (SELECT owner_epoch FROM reservations ORDER BY rowid LIMIT 1)
    )
"""


def read_content_key(connection: sqlite3.Connection, now_us: int) -> bytes | None:
    """The ledger's secret; None if it was lost."""
    connection.execute(MAKE_CONTENT_KEY, (secrets.token_bytes(32), now_us))
    row = connection.execute(CONTENT_KEY).fetchone()
    return None if row is None else bytes(row[0])


def begin_epoch(connection: sqlite3.Connection, owner_id: str, now_us: int) -> Owner:
    """The next epoch of this owner, recorded. Epochs of one file never repeat, whoever opens it."""
    (epoch,) = connection.execute(BEGIN_EPOCH, (owner_id, now_us, now_us)).fetchone()
    return Owner(owner_id=owner_id, epoch=epoch)


def forget_idle_owners(connection: sqlite3.Connection, epoch: int) -> None:
    """Remove earlier owners without a reservation; else each command and each start would leave a row for ever."""
    connection.execute(FORGET_IDLE_OWNERS, (epoch,))

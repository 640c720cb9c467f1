"""Forgets a subscriber in pieces, each a small transaction, so that captures of others go between them.

The first piece marks it: from then on nothing is done for it but to forget it, and whoever asks again goes on. Until
the last one its rows are some under the old id and some under the new; the audit reads them as one subscriber's.
"""

import sqlite3
from collections.abc import Callable, Sequence

from metergate.core.erasing import check_erasure
from metergate.core.errors import LedgerInvariantBroken, ReservationsOpen, ResourceNotFound
from metergate.core.operations import EraseSubscriber
from metergate.core.rows import Erasure
from metergate.stores.sqlite.compacting import is_small
from metergate.stores.sqlite.erased_names import ErasedNames, Renamed

# Rows of one piece: some 10 ms in which captures wait.
PIECE_ROWS = 128

ERASURE = """
    SELECT subscriber_id FROM erasures INDEXED BY erasures_unfinished WHERE erasing_subscriber_id = ?
"""
IS_THERE = "SELECT 1 FROM wallets WHERE subscriber_id = ?"
OPEN = """
    SELECT count(*) FROM reservations INDEXED BY reservations_active WHERE subscriber_id = ? AND state = 'ACTIVE'
"""
# Keys have nothing that the charges need. A person has a few, and a few authorizations.
BEGIN = (
    """
    INSERT INTO wallets (subscriber_id, state, sequence, create_time_us)
    SELECT ?2, state, sequence, create_time_us FROM wallets WHERE subscriber_id = ?1
    """,
    "UPDATE wallets SET state = 'SUSPENDED' WHERE subscriber_id = ?1 AND ?2 IS NOT NULL",
    """
    DELETE FROM keys WHERE ?2 IS NOT NULL
        AND authorization_id IN (SELECT authorization_id FROM authorizations WHERE subscriber_id = ?1)
    """,
)
REVOKE = "UPDATE authorizations SET revoke_time_us = ? WHERE subscriber_id = ? AND revoke_time_us IS NULL"
ADD_ERASURE = """
    INSERT INTO erasures (subscriber_id, reason, actor, erase_time_us, erasing_subscriber_id, leaves_copies)
    VALUES (?, ?, ?, ?, ?, 1)
"""

RELEASED_NEXT = """
    SELECT rowid FROM reservations INDEXED BY reservations_released
    WHERE subscriber_id = ? AND state = 'RELEASED' LIMIT ?
"""
DELETE_RELEASED = "DELETE FROM reservations WHERE rowid = ?"
CHARGES_NEXT = """
    SELECT charge_number, reservation_id, charge_id, subscriber_id, authorization_id, request_id, content_hash,
        allocations
    FROM charges INDEXED BY charges_by_subscriber WHERE subscriber_id = ? ORDER BY charge_number LIMIT ?
"""
DELETE_SETTLED = "DELETE FROM reservations WHERE reservation_id = :reservation_id"
RENAME_CHARGE = """
    UPDATE charges
    SET subscriber_id = :subscriber_id, authorization_id = :authorization_id, request_id = :request_id,
        content_hash = :content_hash, allocations = :allocations
    WHERE charge_number = :charge_number
"""
TRANSFERS_NEXT = """
    SELECT subscriber_id AS old_subscriber_id, sequence, subscriber_id, debit_account, credit_account, grant_id,
        correction_id
    FROM transfers WHERE subscriber_id = ? ORDER BY sequence LIMIT ?
"""
RENAME_TRANSFER = """
    UPDATE transfers
    SET subscriber_id = :subscriber_id, debit_account = :debit_account, credit_account = :credit_account,
        grant_id = :grant_id, correction_id = :correction_id
    WHERE subscriber_id = :old_subscriber_id AND sequence = :sequence
"""
OWN_GRANTS_NEXT = """
    SELECT grant_number, subscriber_id, grant_id FROM grants INDEXED BY grants_by_id
    WHERE subscriber_id = ? AND instr(grant_id, ':') > 0 LIMIT ?
"""
GRANTS_NEXT = """
    SELECT grant_number, subscriber_id, grant_id FROM grants INDEXED BY grants_by_id WHERE subscriber_id = ? LIMIT ?
"""
RENAME_GRANT = """
    UPDATE grants SET subscriber_id = :subscriber_id, grant_id = :grant_id WHERE grant_number = :grant_number
"""
CORRECTIONS_NEXT = """
    SELECT correction_number, subscriber_id, correction_id, grant_id, reason FROM corrections
    WHERE subscriber_id = ? ORDER BY correction_number LIMIT ?
"""
RENAME_CORRECTION = """
    UPDATE corrections
    SET subscriber_id = :subscriber_id, correction_id = :correction_id, grant_id = :grant_id, reason = :reason
    WHERE correction_number = :correction_number
"""
AUTHORIZATIONS_NEXT = "SELECT authorization_id FROM authorizations WHERE subscriber_id = ? LIMIT ?"
DELETE_AUTHORIZATION = "DELETE FROM authorizations WHERE authorization_id = ?"

# References are not checked meanwhile: SQLite would read every reservation. All that an index tells is looked at here.
DELETE_WALLET = """
    DELETE FROM wallets WHERE subscriber_id = ?1
        AND NOT EXISTS (SELECT 1 FROM grants WHERE subscriber_id = ?1)
        AND NOT EXISTS (SELECT 1 FROM authorizations WHERE subscriber_id = ?1)
        AND NOT EXISTS (SELECT 1 FROM charges WHERE subscriber_id = ?1)
        AND NOT EXISTS (SELECT 1 FROM corrections WHERE subscriber_id = ?1)
        AND NOT EXISTS (SELECT 1 FROM transfers WHERE subscriber_id = ?1)
        AND NOT EXISTS (
            SELECT 1 FROM reservations INDEXED BY reservations_active WHERE subscriber_id = ?1 AND state = 'ACTIVE'
        )
        AND NOT EXISTS (
            SELECT 1 FROM reservations INDEXED BY reservations_released WHERE subscriber_id = ?1 AND state = 'RELEASED'
        )
"""
END = """
    UPDATE erasures SET erasing_subscriber_id = NULL WHERE erasing_subscriber_id = ?
    RETURNING subscriber_id, reason, actor, erase_time_us
"""
LEAVES_COPIES = "SELECT leaves_copies FROM erasures WHERE subscriber_id = ?"


def erase_piece(connection: sqlite3.Connection, operation: EraseSubscriber) -> bool:
    """Begin, or rename the next rows, PIECE_ROWS at most; whether there was anything left to do before the end.

    Refusals, all before anything has changed: ResourceNotFound, ReservationsOpen, RequestInvalid.
    """
    check_erasure(operation)
    found = connection.execute(ERASURE, (operation.subscriber_id,)).fetchone()
    if found is None:
        _begin(connection, operation)
        return True
    renamed = Renamed(old=operation.subscriber_id, new=found[0])
    names = ErasedNames(connection, renamed)
    return any(step(connection, renamed, names) for step in _STEPS)  # the first that has any


def _begin(connection: sqlite3.Connection, operation: EraseSubscriber) -> None:
    old, new = operation.subscriber_id, operation.pseudonym
    if connection.execute(IS_THERE, (old,)).fetchone() is None:
        raise ResourceNotFound(resource_name=f"subscribers/{old}")
    (running,) = connection.execute(OPEN, (old,)).fetchone()
    if running:
        raise ReservationsOpen(subscriber_id=old, reservations=running)
    for sql in BEGIN:
        connection.execute(sql, (old, new))
    connection.execute(REVOKE, (operation.now_us, old))
    connection.execute(ADD_ERASURE, (new, operation.reason, operation.actor, operation.now_us, old))


Step = Callable[[sqlite3.Connection, Renamed, ErasedNames], bool]


def _deletes(find: str, delete: str) -> Step:
    def step(connection: sqlite3.Connection, renamed: Renamed, names: ErasedNames) -> bool:
        rows = connection.execute(find, (renamed.old, PIECE_ROWS)).fetchall()
        connection.executemany(delete, rows)
        return bool(rows)

    return step


def _renames(find: str, *changes: str) -> Step:
    def step(connection: sqlite3.Connection, renamed: Renamed, names: ErasedNames) -> bool:
        cursor = connection.execute(find, (renamed.old, PIECE_ROWS))
        columns = [name for name, *_ in cursor.description]
        rows = [names.row(dict(zip(columns, row, strict=True))) for row in cursor.fetchall()]
        for change in changes:
            connection.executemany(change, rows)
        return bool(rows)

    return step


# In the order that ErasedNames needs.
_STEPS: Sequence[Step] = (
    _deletes(RELEASED_NEXT, DELETE_RELEASED),
    _renames(CHARGES_NEXT, DELETE_SETTLED, RENAME_CHARGE),
    _renames(TRANSFERS_NEXT, RENAME_TRANSFER),
    _renames(OWN_GRANTS_NEXT, RENAME_GRANT),
    _renames(CORRECTIONS_NEXT, RENAME_CORRECTION),
    _renames(GRANTS_NEXT, RENAME_GRANT),
    _deletes(AUTHORIZATIONS_NEXT, DELETE_AUTHORIZATION),
)


def end_erasure(connection: sqlite3.Connection, subscriber_id: str) -> Erasure:
    """Forget the old id itself, once no row has it. ResourceNotFound if somebody else did so meanwhile."""
    if connection.execute(ERASURE, (subscriber_id,)).fetchone() is None:
        raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}")
    if connection.execute(DELETE_WALLET, (subscriber_id,)).rowcount != 1:
        raise LedgerInvariantBroken(problem="something of a subscriber that is forgotten has its old name")
    pseudonym, reason, actor, erase_time_us = connection.execute(END, (subscriber_id,)).fetchone()
    return Erasure(
        subscriber_id=pseudonym,
        reason=reason,
        actor=actor,
        erase_time_us=erase_time_us,
        leaves_copies=not is_small(connection),
    )


def leaves_copies(connection: sqlite3.Connection, pseudonym: str) -> bool:
    """Whether what a subscriber was called may still be in unused space or in the WAL."""
    return bool(connection.execute(LEAVES_COPIES, (pseudonym,)).fetchone()[0])

"""Forgets a subscriber within one transaction. It takes as long as the subscriber has charges: some 50 us each."""

import sqlite3
from collections.abc import Mapping

from metergate.core.erasing import ERASED_REASON, check_erasure, grant_pseudonyms, pseudonym
from metergate.core.errors import ChargesTooMany, ReservationsOpen, ResourceNotFound
from metergate.core.operations import EraseSubscriber
from metergate.core.rows import Erasure
from metergate.stores.sqlite import codec
from metergate.stores.sqlite.compacting import is_small

IS_THERE = "SELECT 1 FROM wallets WHERE subscriber_id = ?"
OPEN = """
    SELECT count(*) FROM reservations INDEXED BY reservations_active WHERE subscriber_id = ? AND state = 'ACTIVE'
"""
CHARGES_UP_TO = "SELECT count(*) FROM (SELECT 1 FROM charges WHERE subscriber_id = ? LIMIT ?)"
GRANTS = "SELECT grant_number, grant_id FROM grants WHERE subscriber_id = ?"
CORRECTIONS = "SELECT correction_number, correction_id FROM corrections WHERE subscriber_id = ?"
AUTHORIZATIONS = """
    SELECT authorization_id FROM authorizations WHERE subscriber_id = ?1
    UNION SELECT authorization_id FROM charges WHERE subscriber_id = ?1
"""
ADD_WALLET = """
    INSERT INTO wallets (subscriber_id, state, sequence, create_time_us)
    SELECT ?2, state, sequence, create_time_us FROM wallets WHERE subscriber_id = ?1
"""
# Keys and closed reservations have nothing that the charges need.
REMOVE = (
    "DELETE FROM keys WHERE authorization_id IN (SELECT authorization_id FROM authorizations WHERE subscriber_id = ?)",
    "DELETE FROM reservations WHERE subscriber_id = ? AND state = 'RELEASED'",
    "DELETE FROM reservations WHERE reservation_id IN (SELECT reservation_id FROM charges WHERE subscriber_id = ?)",
    "DELETE FROM authorizations WHERE subscriber_id = ?",
)
RENAME = (
    "UPDATE grants SET subscriber_id = ?2, grant_id = erased_grant(grant_id) WHERE subscriber_id = ?1",
    """
    UPDATE charges
    SET subscriber_id = ?2, authorization_id = erased_authorization(authorization_id), request_id = charge_id,
        content_hash = x'', allocations = erased_allocations(allocations)
    WHERE subscriber_id = ?1
    """,
    f"""
    UPDATE corrections
    SET subscriber_id = ?2, correction_id = erased_correction(correction_id), grant_id = erased_grant(grant_id),
        reason = '{ERASED_REASON}'
    WHERE subscriber_id = ?1
    """,  # noqa: S608 - a constant
    """
    UPDATE transfers
    SET subscriber_id = ?2, debit_account = erased_account(debit_account),
        credit_account = erased_account(credit_account), grant_id = erased_grant(grant_id),
        correction_id = erased_correction(correction_id)
    WHERE subscriber_id = ?1
    """,
    "DELETE FROM wallets WHERE subscriber_id = ?1 AND ?2 IS NOT NULL",
)
ADD_ERASURE = "INSERT INTO erasures (subscriber_id, reason, actor, erase_time_us) VALUES (?, ?, ?, ?)"

_GRANT_PREFIX = "grant:"


def erase_subscriber(connection: sqlite3.Connection, operation: EraseSubscriber) -> Erasure:
    """Replace what names the subscriber.

    Refusals: ResourceNotFound, ReservationsOpen, ChargesTooMany, RequestInvalid.
    """
    check_erasure(operation)
    old, new = operation.subscriber_id, operation.pseudonym
    if connection.execute(IS_THERE, (old,)).fetchone() is None:
        raise ResourceNotFound(resource_name=f"subscribers/{old}")
    (running,) = connection.execute(OPEN, (old,)).fetchone()
    if running:
        raise ReservationsOpen(subscriber_id=old, reservations=running)
    if operation.charges_max is not None:
        (charges,) = connection.execute(CHARGES_UP_TO, (old, operation.charges_max + 1)).fetchone()
        if charges > operation.charges_max:
            raise ChargesTooMany(subscriber_id=old, charges_max=operation.charges_max)
    _name_anew(connection, old, new)
    connection.execute(ADD_WALLET, (old, new))
    for sql in REMOVE:
        connection.execute(sql, (old,))
    for sql in RENAME:
        connection.execute(sql, (old, new))
    erasure = Erasure(
        subscriber_id=new,
        reason=operation.reason,
        actor=operation.actor,
        erase_time_us=operation.now_us,
        leaves_copies=not is_small(connection),
    )
    connection.execute(ADD_ERASURE, (new, erasure.reason, erasure.actor, erasure.erase_time_us))
    return erasure


def _name_anew(connection: sqlite3.Connection, old: str, new: str) -> None:
    """The functions of RENAME: every id as it is called from now on."""
    corrections = {name: pseudonym(number) for number, name in connection.execute(CORRECTIONS, (old,))}
    grants = grant_pseudonyms(connection.execute(GRANTS, (old,)).fetchall(), corrections)
    found = connection.execute(AUTHORIZATIONS, (old,)).fetchall()
    authorizations = {name: f"{new}-{number}" for number, (name,) in enumerate(found)}

    def renamed(names: Mapping[str, str], name: str) -> str:
        # "" stands for none; what is not there is a difference that the audit knows, and must not be kept.
        return name and names.get(name, f"{new}-unknown")

    def account(name: str) -> str:
        if not name.startswith(_GRANT_PREFIX):
            return name
        return _GRANT_PREFIX + renamed(grants, name.removeprefix(_GRANT_PREFIX))

    def allocations(text: str) -> str:
        return codec.to_json([(renamed(grants, name), amount) for name, amount in codec.amounts(text)])

    for name, function in (
        ("erased_grant", lambda grant_id: renamed(grants, grant_id)),
        ("erased_correction", lambda correction_id: renamed(corrections, correction_id)),
        ("erased_authorization", lambda authorization_id: renamed(authorizations, authorization_id)),
        ("erased_account", account),
        ("erased_allocations", allocations),
    ):
        connection.create_function(name, 1, function)

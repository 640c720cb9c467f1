"""Finds wallets with grants whose time is over, each grant once, in the order they expired."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

TO_SWEEP = """
    SELECT grant_number, subscriber_id FROM grants INDEXED BY grants_to_sweep
    WHERE is_swept = 0 AND expire_time_us IS NOT NULL AND expire_time_us <= ?
        AND subscriber_id NOT IN (SELECT erasing_subscriber_id FROM erasures WHERE erasing_subscriber_id IS NOT NULL)
        AND subscriber_id NOT IN (SELECT subscriber_id FROM erasures WHERE erasing_subscriber_id IS NOT NULL)
    ORDER BY expire_time_us LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class ExpiredGrant:
    """A grant that the sweep has not dealt with; perhaps nothing remains of it."""

    grant_number: int
    subscriber_id: str


def expired_grants(connection: sqlite3.Connection, now_us: int, limit: int) -> list[ExpiredGrant]:
    """Some grants that are over and were not swept. Those of who is being forgotten are found once that is done."""
    return [ExpiredGrant(*columns) for columns in connection.execute(TO_SWEEP, (now_us, limit))]


def mark_swept(connection: sqlite3.Connection, grants: Iterable[ExpiredGrant]) -> None:
    """Never find these again: what comes back to them later expires when it comes."""
    numbers = [(grant.grant_number,) for grant in grants]
    connection.executemany("UPDATE grants SET is_swept = 1 WHERE grant_number = ?", numbers)

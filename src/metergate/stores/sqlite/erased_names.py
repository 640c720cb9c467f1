"""What the ids of a subscriber that is being forgotten become: told from the rows that still have the old ones.

Rows are renamed in an order in which whatever an id is told by is renamed after it: charges and transfers, then grants
that are named after others, then corrections, then all other grants, last the authorizations, which go.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from metergate.core.erasing import ERASED_REASON, grant_pseudonym, pseudonym
from metergate.stores.sqlite import codec

# Who is being forgotten, and what it is called from now on.
UNFINISHED = """
    SELECT erasing_subscriber_id, subscriber_id FROM erasures INDEXED BY erasures_unfinished
    WHERE erasing_subscriber_id IS NOT NULL
"""
GRANT_NUMBER = "SELECT grant_number FROM grants WHERE subscriber_id = ? AND grant_id = ?"
CORRECTION_NUMBER = "SELECT correction_number FROM corrections WHERE subscriber_id = ? AND correction_id = ?"
# Nothing is added to a subscriber that is being forgotten: each keeps its place.
AUTHORIZATION_NUMBER = """
    SELECT (
        SELECT count(*) FROM authorizations AS earlier INDEXED BY authorizations_by_subscriber
        WHERE earlier.subscriber_id = ?1 AND earlier.authorization_id < ?2
    )
    FROM authorizations WHERE authorization_id = ?2 AND subscriber_id = ?1
"""

# Names of one subscriber that are remembered while its rows are renamed: the grants of years, and what is asked now.
NAMES_MAX = 4_096

_GRANT_PREFIX = "grant:"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A subscriber that is being forgotten."""

    old: str
    new: str


def unfinished(connection: sqlite3.Connection) -> list[Renamed]:
    """Every subscriber that is being forgotten; nearly always none."""
    return [Renamed(*columns) for columns in connection.execute(UNFINISHED)]


class ErasedNames:
    """The new ids of one subscriber; ``row`` renames whatever a row of any table has of the old ones."""

    def __init__(self, connection: sqlite3.Connection, renamed: Renamed) -> None:
        self._connection = connection
        self._old, self._new = renamed.old, renamed.new
        # What is not there is a difference that the audit knows, and must not be kept.
        self._unknown = f"{renamed.new}-unknown"
        self._number = lru_cache(NAMES_MAX)(self._look_up)
        self._rules = {
            "subscriber_id": lambda _: self._new,
            "content_hash": lambda _: b"",
            "reason": lambda _: ERASED_REASON,
            "authorization_id": self._authorization,
            "grant_id": self._grant,
            "correction_id": self._correction,
            "debit_account": self._account,
            "credit_account": self._account,
            "allocations": self._allocations,
        }

    def row(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row, by name, as they are from now on."""
        after = {name: self._rules[name](value) if name in self._rules else value for name, value in columns.items()}
        if "request_id" in after:  # unique, and the request's no more
            after["request_id"] = after.get("charge_id", "")
        return after

    def _look_up(self, sql: str, name: str) -> int | None:
        found = self._connection.execute(sql, (self._old, name)).fetchone()
        return None if found is None else int(found[0])

    def _grant(self, grant_id: str) -> str:
        if not grant_id:  # none
            return ""
        return grant_pseudonym(grant_id, self._grant_number, self._correction_number) or self._unknown

    def _grant_number(self, grant_id: str) -> int | None:
        return self._number(GRANT_NUMBER, grant_id)

    def _correction_number(self, correction_id: str) -> int | None:
        return self._number(CORRECTION_NUMBER, correction_id)

    def _correction(self, correction_id: str) -> str:
        if not correction_id:  # none
            return ""
        number = self._correction_number(correction_id)
        return self._unknown if number is None else pseudonym(number)

    def _authorization(self, authorization_id: str) -> str:
        number = self._number(AUTHORIZATION_NUMBER, authorization_id)
        return self._unknown if number is None else f"{self._new}-{number}"

    def _account(self, account: str) -> str:
        if not account.startswith(_GRANT_PREFIX):
            return account
        return _GRANT_PREFIX + self._grant(account.removeprefix(_GRANT_PREFIX))

    def _allocations(self, text: str) -> str:
        try:
            parts = codec.amounts(text)
        except (ValueError, TypeError):
            return ""  # what cannot be read may name anything
        return codec.to_json([(self._grant(grant_id), amount) for grant_id, amount in parts])

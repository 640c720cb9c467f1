"""What is read of a ledger outside its transactions of writing. Plain blocking code over one read-only connection."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from metergate.core.accounts import AccountBalance
from metergate.core.credits import MICROCREDITS_PER_CREDIT
from metergate.core.errors import RequestInvalid, ResourceNotFound, Violation
from metergate.core.grants import rollable, rollover_grant_id
from metergate.core.operations import Replayed
from metergate.core.postings import spendable
from metergate.core.reservation import Reservation
from metergate.core.rows import Authorization, Charge, Correction, Grant, Transfer
from metergate.core.usage import CountingSource
from metergate.ports import Balance, ChargeFilter, Days, Grantee, Page, TransferFilter, UsageComparison
from metergate.stores.sqlite import codec, derived

Row = TypeVar("Row")

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound

# What a subscriber's open reservations set aside of each grant: one reading of them, however many grants are read.
_ASIDE = f"""
    WITH aside AS MATERIALIZED (
        SELECT {derived.PART_GRANT_ID} AS grant_id, sum({derived.PART_MICROCREDITS}) AS microcredits
        FROM {derived.OPEN_PARTS} WHERE open.subscriber_id = ?1 AND open.state = 'ACTIVE' GROUP BY 1
    )
"""
_REMAINING = "grants.unspent_microcredits - coalesce(aside.microcredits, 0)"
_GRANT = derived.qualified("grants", codec.GRANT).replace("grants.unspent_microcredits", _REMAINING)
_WITH_CREDIT = """
    FROM grants INDEXED BY grants_with_credit LEFT JOIN aside USING (grant_id)
    WHERE grants.subscriber_id = ?1 AND grants.is_spent = 0
"""
AVAILABLE = f"""
    {_ASIDE} SELECT coalesce(sum({_REMAINING}), 0) {_WITH_CREDIT}
        AND effective_time_us <= ?2 AND (expire_time_us IS NULL OR expire_time_us > ?2)
"""
# What the next change of the wallet, or the sweep, will move on rather than let expire.
ROLLING_OVER = f"""
    {_ASIDE} SELECT {_GRANT} {_WITH_CREDIT} AND expire_time_us <= ?2 AND rollover_microcredits_max > 0
"""
GRANT = f"SELECT {derived.GRANT_READ} FROM grants WHERE subscriber_id = ? AND grant_id = ?"
RESERVED = """
    SELECT coalesce(sum(reserved_microcredits), 0) FROM reservations INDEXED BY reservations_active
    WHERE subscriber_id = ? AND state = 'ACTIVE'
"""
GRANTEE = f"""
    SELECT {derived.qualified("keys", codec.KEY)}, {derived.AUTHORIZATION_READ}
    FROM keys JOIN authorizations USING (authorization_id) WHERE keys.secret_hash = ?
"""
CHARGE_OF_REQUEST = f"""
    SELECT {codec.CHARGE} FROM charges WHERE subscriber_id = ? AND authorization_id = ? AND request_id = ?
"""
RESERVATION_OF_REQUEST = f"""
    SELECT {codec.RESERVATION} FROM reservations INDEXED BY reservations_active
    WHERE subscriber_id = ? AND authorization_id = ? AND request_id = ? AND state = 'ACTIVE'
"""
KEYS_PAGE = f"""
    SELECT {derived.qualified("keys", codec.KEY)}, {derived.AUTHORIZATION_READ}
    FROM authorizations JOIN keys USING (authorization_id)
    WHERE authorizations.subscriber_id = ? AND keys.key_id > ? ORDER BY keys.key_id LIMIT ?
"""
GRANTS_PAGE = f"""
    {_ASIDE} SELECT grant_number, {_GRANT} FROM grants LEFT JOIN aside USING (grant_id)
    WHERE grants.subscriber_id = ?1 AND grant_number < ?2 ORDER BY grant_number DESC LIMIT ?3
"""
ACCOUNT_DAYS = """
    SELECT account, debited_credits, debited_rest, credited_credits, credited_rest FROM account_days
    WHERE day >= ? AND day <= ?
"""
CHARGES_PAGE = f"""
    SELECT charge_number, {codec.CHARGE} FROM charges
    WHERE subscriber_id = ? AND charge_number < ? {{conditions}} ORDER BY charge_number DESC LIMIT ?
"""
CORRECTIONS_PAGE = f"""
    SELECT correction_number, {codec.CORRECTION} FROM corrections
    WHERE subscriber_id = ? AND correction_number < ? ORDER BY correction_number DESC LIMIT ?
"""
TRANSFERS_PAGE = f"""
    SELECT transfers.sequence, {derived.qualified("transfers", codec.TRANSFER)}
    FROM transfers LEFT JOIN charges USING (charge_id)
    WHERE transfers.subscriber_id = ? AND transfers.sequence < ? {{conditions}}
    ORDER BY transfers.sequence DESC LIMIT ?
"""

# By the backend that was called last: it served the answer.
USAGE_BY_DAY = """
    SELECT
        settle_time_us / 86400000000 * 86400000000 AS day_us,
        attempts ->> '$[#-1][0]' AS backend_id,
        model_id,
        counting_source,
        count(*),
        count(*) - count(usage_reported),
        sum(usage_mismatch),
        sum(iif(usage_reported IS NULL, 0, (SELECT coalesce(sum(value ->> 1), 0) FROM json_each(usage_counted)))),
        sum((SELECT coalesce(sum(value ->> 1), 0) FROM json_each(usage_reported)))
    FROM charges
    WHERE settle_time_us >= ? AND close_cause = 'FINISHED' AND attempts <> '[]'
    GROUP BY day_us, backend_id, model_id, counting_source
    ORDER BY day_us, backend_id, model_id, counting_source
"""

# The position of a first page: above every row number and sequence.
_TOP = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Query:
    """Reads of one connection; each is one consistent view."""

    connection: sqlite3.Connection

    def grantee(self, secret_hash: bytes) -> Grantee | None:
        """Whom a key stands for."""
        columns = self._one(GRANTEE, secret_hash)
        return None if columns is None else _grantee(columns)

    def request(
        self, subscriber_id: str, authorization_id: str, request_id: str, now_us: int
    ) -> Replayed | Reservation | None:
        """What became of a request."""
        with self._one_view():
            charge = self._one(CHARGE_OF_REQUEST, subscriber_id, authorization_id, request_id)
            if charge is not None:
                balance = self._balance(subscriber_id, authorization_id, now_us)
                return Replayed(charge=codec.charge(charge), spendable_microcredits=balance.spendable_microcredits)
            running = self._one(RESERVATION_OF_REQUEST, subscriber_id, authorization_id, request_id)
            return None if running is None else codec.reservation(running)

    def keys(self, subscriber_id: str, cursor: str | None, size: int) -> Page[Grantee]:
        """By key id; the cursor is the last one of the page before."""
        # One more row than asked for tells whether there is a next page.
        rows = self.connection.execute(KEYS_PAGE, (subscriber_id, cursor or "", size + 1)).fetchall()
        return Page(
            rows=tuple(_grantee(columns) for columns in rows[:size]),
            next_cursor=rows[size - 1][0] if len(rows) > size else None,
        )

    def balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        """The wallet now."""
        with self._one_view():
            return self._balance(subscriber_id, authorization_id, now_us)

    def _balance(self, subscriber_id: str, authorization_id: str | None, now_us: int) -> Balance:
        columns = self._one(f"SELECT {codec.WALLET} FROM wallets WHERE subscriber_id = ?", subscriber_id)
        if columns is None:
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}")
        wallet = codec.wallet(columns)
        (credit,) = self.connection.execute(AVAILABLE, (subscriber_id, now_us)).fetchone()
        credit += self._rolling_over(subscriber_id, now_us)
        (reserved,) = self.connection.execute(RESERVED, (subscriber_id,)).fetchone()
        may_spend = credit
        if authorization_id is not None:
            may_spend = spendable(wallet, self._authorization(subscriber_id, authorization_id), credit)
        return Balance(
            wallet=wallet,
            available_microcredits=credit,
            reserved_microcredits=reserved,
            spendable_microcredits=may_spend,
        )

    def _rolling_over(self, subscriber_id: str, now_us: int) -> int:
        amount = 0
        for columns in self.connection.execute(ROLLING_OVER, (subscriber_id, now_us)).fetchall():
            grant = codec.grant(columns)
            rollover = self._one(GRANT, subscriber_id, rollover_grant_id(grant.grant_id))
            amount += rollable(grant, None if rollover is None else codec.grant(rollover), now_us)
        return amount

    def _authorization(self, subscriber_id: str, authorization_id: str) -> Authorization:
        columns = self._one(
            f"SELECT {derived.AUTHORIZATION_READ} FROM authorizations WHERE authorization_id = ? AND subscriber_id = ?",
            authorization_id,
            subscriber_id,
        )
        if columns is None:
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/authorizations/{authorization_id}")
        return codec.authorization(columns)

    def grants(self, subscriber_id: str, cursor: str | None, size: int) -> Page[Grant]:
        """Newest first."""
        return self._page(GRANTS_PAGE, [], codec.grant, subscriber_id, cursor, size)

    def corrections(self, subscriber_id: str, cursor: str | None, size: int) -> Page[Correction]:
        """Newest first."""
        return self._page(CORRECTIONS_PAGE, [], codec.correction, subscriber_id, cursor, size)

    def charges(self, subscriber_id: str, where: ChargeFilter, cursor: str | None, size: int) -> Page[Charge]:
        """Newest first."""
        conditions = [
            ("authorization_id = ?", where.authorization_id),
            ("app_id = ?", where.app_id),
            ("model_id = ?", where.model_id),
            ("settle_time_us >= ?", where.settle_time_us_min),
            ("settle_time_us < ?", where.settle_time_us_max),
        ]
        return self._page(CHARGES_PAGE, conditions, codec.charge, subscriber_id, cursor, size)

    def charge(self, subscriber_id: str, charge_id: str) -> Charge:
        """One charge."""
        columns = self._one(
            f"SELECT {codec.CHARGE} FROM charges WHERE charge_id = ? AND subscriber_id = ?", charge_id, subscriber_id
        )
        if columns is None:
            raise ResourceNotFound(resource_name=f"subscribers/{subscriber_id}/charges/{charge_id}")
        return codec.charge(columns)

    def transfers(self, subscriber_id: str, where: TransferFilter, cursor: str | None, size: int) -> Page[Transfer]:
        """Newest first."""
        conditions = [
            ("charges.app_id = ?", where.app_id),
            ("charges.model_id = ?", where.model_id),
            ("transfers.create_time_us >= ?", where.create_time_us_min),
            ("transfers.create_time_us < ?", where.create_time_us_max),
        ]
        return self._page(TRANSFERS_PAGE, conditions, codec.transfer, subscriber_id, cursor, size)

    def account_balances(self, days: Days) -> dict[str, AccountBalance]:
        """By account. Added up here: SQLite's own sums end at 64 bits."""
        moved: dict[str, tuple[int, int]] = {}
        for account, *sums in self.connection.execute(ACCOUNT_DAYS, (days.first, days.last)):
            debited, credited = moved.get(account, (0, 0))
            debits, debit_rest, credits_, credit_rest = sums
            moved[account] = (
                debited + debits * MICROCREDITS_PER_CREDIT + debit_rest,
                credited + credits_ * MICROCREDITS_PER_CREDIT + credit_rest,
            )
        return {
            account: AccountBalance(account=account, debited_microcredits=debited, credited_microcredits=credited)
            for account, (debited, credited) in sorted(moved.items())
        }

    def count_subscribers(self) -> int:
        """How many wallets there are."""
        (count,) = self.connection.execute("SELECT count(*) FROM wallets").fetchone()
        return int(count)

    def usage_by_day(self, settle_time_us_min: int) -> tuple[UsageComparison, ...]:
        """Counted beside reported."""
        return tuple(map(_usage_comparison, self.connection.execute(USAGE_BY_DAY, (settle_time_us_min,))))

    @contextmanager
    def _one_view(self) -> Iterator[None]:
        """All that is read within it is of one instant."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.execute("COMMIT")

    def _one(self, sql: str, *values: object) -> codec.Columns | None:
        columns: codec.Columns | None = self.connection.execute(sql, values).fetchone()
        return columns

    def _page(
        self,
        sql: str,
        conditions: Sequence[tuple[str, object]],
        decode: Callable[[tuple[Any, ...]], Row],
        subscriber_id: str,
        cursor: str | None,
        size: int,
    ) -> Page[Row]:
        """Rows below the cursor, which is the number of the last row of the page before."""
        given = [(text, value) for text, value in conditions if value is not None]
        text = sql.format(conditions="".join(f" AND {condition}" for condition, _ in given))
        # One more row than asked for tells whether there is a next page.
        values = (subscriber_id, _position(cursor), *(value for _, value in given), size + 1)
        rows = self.connection.execute(text, values).fetchall()
        return Page(
            rows=tuple(decode(columns[1:]) for columns in rows[:size]),
            next_cursor=str(rows[size - 1][0]) if len(rows) > size else None,
        )


def _grantee(columns: codec.Columns) -> Grantee:
    key_size = codec.KEY.count(",") + 1
    return Grantee(key=codec.key(columns[:key_size]), authorization=codec.authorization(columns[key_size:]))


def _usage_comparison(columns: codec.Columns) -> UsageComparison:
    day_us, backend_id, model_id, source, charges, unreported, mismatched, counted, reported = columns
    return UsageComparison(
        day_us=day_us,
        backend_id=backend_id,
        model_id=model_id,
        counting_source=CountingSource(source),
        charges=charges,
        unreported_charges=unreported,
        mismatched_charges=mismatched,
        counted_tokens=counted,
        reported_tokens=reported,
    )


def _position(cursor: str | None) -> int:
    if cursor is None:
        return _TOP
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < len(str(_TOP))):
        raise RequestInvalid(Violation("page_token", "is not one that this service gave"))
    return int(cursor)

"""What a ledger is asked for, and what it answers, beside its operations."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from metergate.core.accounts import DAY_US
from metergate.core.rows import ApiKey, Authorization, Wallet
from metergate.core.times import TIME_US_MAX
from metergate.core.usage import CountingSource

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grantee:
    """What a bearer key stands for."""

    key: ApiKey
    authorization: Authorization


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A wallet at one instant."""

    wallet: Wallet
    available_microcredits: int  # in effect, not expired, not reserved
    reserved_microcredits: int  # of open reservations
    spendable_microcredits: int  # what the asking authorization may still spend


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeFilter:
    """Which charges to list: all that match every given field."""

    authorization_id: str | None = None
    app_id: str | None = None
    model_id: str | None = None
    settle_time_us_min: int | None = None  # inclusive
    settle_time_us_max: int | None = None  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFilter:
    """Which transfers to list: all that match every given field."""

    app_id: str | None = None  # of the charge that moved it
    model_id: str | None = None  # of the charge that moved it
    create_time_us_min: int | None = None  # inclusive
    create_time_us_max: int | None = None  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A range of time, in microseconds since the epoch."""

    first_us: int  # inclusive
    end_us: int  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """A range of days since the epoch, UTC, both ends included."""

    first: int = 0
    last: int = TIME_US_MAX // DAY_US


ALL_DAYS = Days()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Row]):
    """Some rows and where the next ones begin."""

    rows: tuple[Row, ...]
    next_cursor: str | None  # None: these were the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a look for abandoned reservations came to."""

    settled: int
    stuck: int  # that could not be settled


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageComparison:
    """What the gateway counted of finished answers beside what a backend reported, of one day."""

    day_us: int  # its beginning: microseconds since the epoch, UTC; by the time of settling
    backend_id: str  # that served the answers
    model_id: str
    counting_source: CountingSource
    charges: int
    unreported_charges: int  # of them, without a report: they are in no sum of tokens
    mismatched_charges: int  # of them, with a report beyond the model's tolerance
    counted_tokens: int  # that were charged, all classes together
    reported_tokens: int

"""Times are microseconds since the epoch, UTC; people and files say them with a zone."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECONDS_PER_SECOND = 1_000_000
MICROSECONDS_PER_DAY = 86_400 * MICROSECONDS_PER_SECOND

# Nothing here happened before the epoch, so no time is negative.
TIME_US_MIN = 0

# The year 9000. The calendars of Python and protobuf end with 9999: what is a time here can be shown in every zone, and
# have any duration that a person may type added, without leaving them.
TIME_US_MAX = (datetime(9000, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)

OUT_OF_RANGE = "must be from 1970 to the year 9000"


def parse_time_us(text: str) -> int:
    """Microseconds of an ISO 8601 time with its zone; ValueError says what is wrong."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a time, such as 2027-01-01T00:00:00+08:00") from None
    if time.tzinfo is None:
        raise ValueError("needs a time zone, such as 2027-01-01T00:00:00+08:00")
    return time_us_of(time)


def time_us_of(time: datetime) -> int:
    """Microseconds of a time that has a zone; ValueError if it is out of range."""
    time_us = (time - EPOCH) // timedelta(microseconds=1)
    if not is_time_us(time_us):
        raise ValueError(OUT_OF_RANGE)
    return time_us


def is_time_us(time_us: int) -> bool:
    """Whether it is in range."""
    return TIME_US_MIN <= time_us <= TIME_US_MAX


def datetime_of(time_us: int) -> datetime:
    """The time, in UTC."""
    return EPOCH + timedelta(microseconds=time_us)

"""What a bench measured, as it is kept in the JSON file."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU of the gateway and of the pass-through, in microseconds a token or a call, by round."""

    load: str
    unit: str
    bar: float  # what the ratio must not pass
    gateway_us: list[float]
    pass_through_us: list[float]
    tokens_a_delivery: list[float]  # of the gateway, by round; empty for whole answers

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: the two of one round ran under the same conditions."""
        return median(a / b for a, b in zip(self.gateway_us, self.pass_through_us, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds from the call to the first piece of its answer, one request at a time."""

    requests: int
    gateway_p50_ms: float
    gateway_p99_ms: float
    pass_through_p50_ms: float
    pass_through_p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """Durable captures a second, by round: through the store, and the same rows by ``executemany``."""

    batch: int
    store_a_second: list[float]
    raw_a_second: list[float]
    store_cpu_us: list[float]  # CPU a capture, of the store and of the tasks that ask it


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """Whole requests a second (reserve, capture, settle), and each step alone, by round; raw: the same rows."""

    batch: int
    cycles_a_second: list[float]
    reserves_a_second: list[float]
    captures_a_second: list[float]
    settles_a_second: list[float]
    raw_a_second: list[float]
    cpu_us: list[float]  # CPU a cycle, of the store and of the tasks that ask it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hops:
    """Transactions a second: one hop to a thread a batch (sqlite3), and one a statement (aiosqlite)."""

    reads: int
    rows: int
    one_hop: float
    a_hop_a_statement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How fast one vocabulary counts one language; the reference is its library's own encode."""

    vocabulary: str
    language: str
    megabytes_a_second: float
    reference_megabytes_a_second: float | None  # None: the library reads no such file
    chunk_us: float  # for each 4 characters of a growing text


@dataclass(frozen=True, slots=True, kw_only=True)
class LongText:
    """A text that is hard to count, and how late others were woken while it was counted."""

    vocabulary: str
    text: str
    deliveries: int  # that were counted within the time there was
    delivery_us: float  # on average
    late_p99_ms: float
    late_max_ms: float


@dataclass(slots=True, kw_only=True)
class Results:
    """All of one run; a part that did not run is empty."""

    command: str
    date: str
    machine: dict[str, str]
    costs: list[Cost]
    latency: Latency | None
    captures: Captures | None
    cycles: Cycles | None
    hops: list[Hops]
    counting: list[Counting]
    long_texts: list[LongText]

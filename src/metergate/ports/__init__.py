"""What the use cases need of the outside, in the domain's words: never SQL, HTTP or gRPC."""

from metergate.ports.backend import Backend, EmbeddingBackend, PoolObserver
from metergate.ports.clock import Clock
from metergate.ports.content_policy import ContentPolicy
from metergate.ports.ledger_rows import (
    ALL_DAYS,
    Balance,
    ChargeFilter,
    Days,
    Grantee,
    Page,
    Recovery,
    Times,
    TransferFilter,
    UsageComparison,
)
from metergate.ports.ledger_store import LedgerStore
from metergate.ports.observer import CallObserver, CallStart, Commit, Delivery, Observer
from metergate.ports.sink import Sink
from metergate.ports.tokenizer import CompletionCounter, TokenCodec, Tokenizer

__all__ = [
    "ALL_DAYS",
    "Backend",
    "Balance",
    "CallObserver",
    "CallStart",
    "ChargeFilter",
    "Clock",
    "Commit",
    "CompletionCounter",
    "ContentPolicy",
    "Days",
    "Delivery",
    "EmbeddingBackend",
    "Grantee",
    "LedgerStore",
    "Observer",
    "Page",
    "PoolObserver",
    "Recovery",
    "Sink",
    "Times",
    "TokenCodec",
    "Tokenizer",
    "TransferFilter",
    "UsageComparison",
]

"""The ledger on one SQLite file: WAL, synchronous=FULL, one writer with group commit, readers beside it."""

from metergate.stores.sqlite.reader import SqliteLedgerReader
from metergate.stores.sqlite.store import SqliteLedgerStore

__all__ = ["SqliteLedgerReader", "SqliteLedgerStore"]

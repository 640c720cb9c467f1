"""What the writer carries out: the ledger's operations, and what is written beside them."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metergate.core.batches import Operation, place


@dataclass(frozen=True, slots=True)
class SetUp:
    """A write beside the ledger (keys, rate cards): it checks before it writes, and raises having written nothing."""

    run: Callable[[sqlite3.Connection], object]
    leaves_traces: bool = False  # what it replaces must not be left in unused space or in the WAL


WriteOperation = Operation | SetUp


def positions_in_order(operations: Sequence[WriteOperation]) -> list[int]:
    """Where the operations are, in the order they are decided in: set-ups after all the rest."""
    return sorted(range(len(operations)), key=lambda position: _place(operations[position]))


def _place(operation: WriteOperation) -> tuple[bool, int]:
    return (True, 0) if isinstance(operation, SetUp) else (False, place(operation))

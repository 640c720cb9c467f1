"""Where ledgers lie whose disk is watched."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# So few that a run of work is checkpointed several times: what a checkpoint does is cut through, and fails, too.
CHECKPOINT_PAGES = 30


@contextmanager
def fast_folder() -> Iterator[Path]:
    """In memory where there is such a place: here syncs are counted, not waited for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder).resolve()

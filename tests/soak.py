"""What ``make soak`` sees of a test that runs long: how far it is, and its figures. A common run sees neither."""

import json
import os
import sys
from pathlib import Path

# Where figures are added, a line of JSON each; set by scripts/soak.
_FIGURES = os.environ.get("SOAK_FIGURES")


def progress(part: str, done: int, of: int) -> None:
    """Say how far a part is."""
    if _FIGURES:
        sys.stderr.write(f"\r  {part}: {done:,} of {of:,}" + ("\n" if done == of else ""))
        sys.stderr.flush()


def tell(part: str, **figures: float | str) -> None:
    """Keep a part's figures for the table."""
    if _FIGURES:
        with Path(_FIGURES).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": part, **figures}) + "\n")

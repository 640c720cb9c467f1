"""Which processes work below a folder: how tests find what a command left running."""

import os
from pathlib import Path


def processes_in(folder: Path) -> list[str]:
    """The command lines of all processes that work below the folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile, or is not ours to see
    return found

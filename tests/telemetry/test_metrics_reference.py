"""The reference in the docs is the table of the code."""

import subprocess
import sys
from pathlib import Path

from metergate.telemetry.families import FAMILIES, LABELS

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate_metrics_reference.py"


def test_the_committed_reference_is_the_generated_one() -> None:
    checked = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_label_is_explained() -> None:
    explained = {name for names in LABELS for name in names.split(", ")}
    assert {label for family in FAMILIES for label in family.labels} == explained

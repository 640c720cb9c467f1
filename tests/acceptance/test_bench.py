"""``make bench`` runs. What it measures is no claim of the tests': other work on the machine would decide it."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PARTS = ("costs", "latency", "captures", "cycles", "counting", "long_texts", "hops")
TITLES = (
    "CPU a streamed token",
    "Time to first token",
    "Durable captures",
    "Durable cycles",
    "Transactions a second",
    "Counting",
    "Long texts",
)


@pytest.mark.timeout(240)  # every part starts processes or reads vocabularies, on a machine that runs other tests
def test_a_quick_bench_measures_every_part_and_leaves_only_its_results(tmp_path: Path) -> None:
    bench = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *(f"--only={part}" for part in PARTS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert bench.returncode == 0, bench.stdout
    assert all(title in bench.stdout for title in TITLES), bench.stdout
    results = msgspec.json.decode((tmp_path / "bench.json").read_bytes())
    assert [len(cost["gateway_us"]) for cost in results["costs"]] == [1, 1, 1]
    assert all(results[part] for part in PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]

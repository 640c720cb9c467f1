"""The plot of docs/benchmarks.md: what the gateway costs beside the pass-through, and its bars."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from bench.results import Cost

mpl.use("agg")

from matplotlib import pyplot as plt

MET = "#2a7f62"
MISSED = "#c2572b"


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Write a PNG: a bar for each load, and a line across it where its limit is."""
    figure, axes = plt.subplots(figsize=(8, 3.2), dpi=150, layout="constrained")
    for place, cost in enumerate(reversed(costs)):
        ratio = cost.ratio
        axes.barh(place, ratio, height=0.5, color=MET if ratio <= cost.bar else MISSED)
        axes.plot([cost.bar, cost.bar], [place - 0.38, place + 0.38], color="black", linewidth=2.5)
        axes.text(ratio - 0.03, place, f"{ratio:.2f}", ha="right", va="center", color="white", fontweight="bold")
        axes.text(cost.bar, place + 0.4, f"bar {cost.bar:.1f}", ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(costs)), [cost.load for cost in reversed(costs)])
    axes.set_ylim(-0.6, len(costs) - 0.2)
    axes.set_xlim(0, 1.15 * max(max(cost.ratio, cost.bar) for cost in costs))
    axes.set_xlabel("CPU of the gateway / CPU of a bare pass-through")
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)

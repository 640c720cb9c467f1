"""Seeds of the deterministic simulation: the use case over virtual time, with everything going wrong at once."""

import logging
from collections import Counter

from simulation.test_simulation import simulate

from soak.parts import Figures, Step


def simulation(seeds: int, step: Step) -> Figures:
    """Run seeds 0, 1, 2, ...; a broken one is named by the error's note."""
    logging.disable(logging.CRITICAL)
    ends: Counter[str] = Counter()
    try:
        for seed in range(seeds):
            ends.update(cause.value for cause in simulate(seed).causes)
            step()
    finally:
        logging.disable(logging.NOTSET)
    return {f"seeds with {cause}:": f"{count:,}" for cause, count in sorted(ends.items())}

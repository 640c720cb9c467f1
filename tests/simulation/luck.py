"""Where everything random of a run comes from, and what is said when a law did not hold."""

import asyncio
import random
from dataclasses import dataclass, field


class Broken(AssertionError):
    """A law did not hold."""


def require(holds: object, problem: str) -> None:
    """Broken unless it holds."""
    if not holds:
        raise Broken(problem)


@dataclass
class Luck:
    """Everything random of a run, and what happened, in order."""

    random: random.Random
    trace: list[str] = field(default_factory=list)

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    async def pause(self, seconds_max: float) -> None:
        """Nothing, one turn of the loop, or a while."""
        match self.random.randrange(3):
            case 0:
                return
            case 1:
                await asyncio.sleep(0)
            case _:
                await asyncio.sleep(self.random.random() * seconds_max)

    async def some_time(self) -> None:
        """A while, or some turns of the loop: so that a cancel hits every await, those too that take no time."""
        if self.happens(0.5):
            await asyncio.sleep(self.random.random() * 3)
        else:
            for _ in range(self.random.randrange(60)):
                await asyncio.sleep(0)

    def note(self, event: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {event}")

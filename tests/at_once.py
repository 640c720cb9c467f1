"""Much work, some of it at once."""

import asyncio
from collections.abc import Awaitable, Callable


async def at_once(work: Callable[[int], Awaitable[None]], *, count: int, workers: int) -> None:
    """Do the work for the numbers from 0, as many at once as there are workers."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())

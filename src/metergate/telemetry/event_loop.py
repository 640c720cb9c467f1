"""How late the event loop is: what every request waits in vain."""

import asyncio
from typing import NoReturn

from metergate.telemetry.instruments import Distribution

# Four times a second finds every stall of a quarter of a second, and costs nothing that can be measured.
SAMPLE_SECONDS = 0.25


async def sample_lag(lag_seconds: Distribution) -> NoReturn:
    """Keep observing by how much a sleep was longer than asked; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_SECONDS
        await asyncio.sleep(SAMPLE_SECONDS)
        lag_seconds.observe(max(0.0, loop.time() - due))

"""The app's end of a stream."""

from typing import Protocol

from metergate.core.inference import Delta
from metergate.core.receipts import Admission, Receipt


class Sink(Protocol):
    """The app's end of a stream. A write counts as delivered from the moment it begins, whether it ends or not.

    Every write raises CancelledError when the app is not there any more.
    """

    async def admit(self, admission: Admission) -> None:
        """Write the admission."""
        ...

    async def deliver(self, delta: Delta) -> None:
        """Write a piece of the answer; returns when the app's flow control lets the next one follow."""
        ...

    async def receipt(self, receipt: Receipt) -> None:
        """Write the receipt."""
        ...

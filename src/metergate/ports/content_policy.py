"""What may reach an app."""

from typing import Protocol

from metergate.core.passage import Passage


class ContentPolicy(Protocol):
    """Decides whether a piece of an answer may reach the app. It neither stores nor logs what it is shown (L11)."""

    async def allows(self, passage: Passage) -> bool:
        """Whether it may; cancelling the call gives it up. ContentPolicyUnavailable if that cannot be told."""
        ...

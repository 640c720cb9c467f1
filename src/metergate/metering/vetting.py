"""Asks the content policy about each piece of an answer, before it is paid for and delivered. Fails closed (L8)."""

import asyncio

from metergate.core.errors import ContentPolicyUnavailable
from metergate.core.inference import Delta
from metergate.core.passage import Context, Passage
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.metering.buffer import End
from metergate.metering.limits import Limits
from metergate.ports import ContentPolicy


class Vetting:
    """One answer, as its content policy sees it."""

    def __init__(self, policy: ContentPolicy, limits: Limits, *, reservation_id: str, model_id: str) -> None:
        self._policy = policy
        self._limits = limits
        self._reservation_id = reservation_id
        self._model_id = model_id
        self._index = 0
        self._before = Context()

    async def end_before(self, delta: Delta) -> End | None:
        """None if the delta may be delivered; else the end of the answer, before it."""
        passage = Passage(
            reservation_id=self._reservation_id,
            model_id=self._model_id,
            index=self._index,
            delta=delta,
            before=self._before,
        )
        try:
            async with asyncio.timeout(self._limits.content_policy_seconds_max):
                is_allowed = await self._policy.allows(passage)
        except TimeoutError:
            return _failed(ContentPolicyUnavailable(problem="it kept the gateway waiting too long"))
        except ContentPolicyUnavailable as exc:
            return _failed(exc)
        if not is_allowed:
            return End(cause=CloseCause.CONTENT_BLOCKED, finish_reason=FinishReason.CONTENT_FILTER)
        self._index += 1
        self._before = self._before.then(delta, self._limits.content_policy_context_characters)
        return None


def _failed(error: ContentPolicyUnavailable) -> End:
    return End(cause=CloseCause.CONTENT_POLICY_ERROR, error=error)

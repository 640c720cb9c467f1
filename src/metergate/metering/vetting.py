"""Asks the content policy about each piece of an answer, before it is paid for and delivered. Fails closed (L8)."""

import asyncio
from collections.abc import Callable

from metergate.core.errors import ContentPolicyUnavailable
from metergate.core.inference import Delta
from metergate.core.passage import Context, Passage, Verdict
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.metering.buffer import End
from metergate.metering.limits import Limits
from metergate.ports import CallObserver, ContentPolicy


class Vetting:
    """One answer, as its content policy sees it."""

    def __init__(
        self,
        policy: ContentPolicy,
        limits: Limits,
        *,
        observer: CallObserver,
        monotonic: Callable[[], float],
        reservation_id: str,
        model_id: str,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._observer = observer
        self._monotonic = monotonic
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
        began_seconds = self._monotonic()
        verdict, error = await self._verdict(passage)
        self._observer.vetted(verdict, self._monotonic() - began_seconds)
        if verdict is Verdict.FAILED:
            return End(cause=CloseCause.CONTENT_POLICY_ERROR, error=error)
        if verdict is Verdict.BLOCKED:
            return End(cause=CloseCause.CONTENT_BLOCKED, finish_reason=FinishReason.CONTENT_FILTER)
        self._index += 1
        self._before = self._before.then(delta, self._limits.content_policy_context_characters)
        return None

    async def _verdict(self, passage: Passage) -> tuple[Verdict, ContentPolicyUnavailable | None]:
        """The policy's verdict, and why it failed if it did."""
        try:
            async with asyncio.timeout(self._limits.content_policy_seconds_max):
                is_allowed = await self._policy.allows(passage)
        except TimeoutError:
            return Verdict.FAILED, ContentPolicyUnavailable(problem="it kept the gateway waiting too long")
        except ContentPolicyUnavailable as exc:
            return Verdict.FAILED, exc
        return (Verdict.ALLOWED if is_allowed else Verdict.BLOCKED), None

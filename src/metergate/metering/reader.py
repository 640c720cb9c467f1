"""Pulls a backend's answer into the buffer: within time limits, and from the next backend while nothing came yet."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from metergate.core.changes import changed
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected, BackendUnavailable, MetergateError
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish
from metergate.core.reservation import CloseCause
from metergate.core.rows import Attempt, FinishReason
from metergate.core.usage import Usage
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.limits import Limits
from metergate.metering.patience import Patience
from metergate.ports import Backend, CallObserver, EmbeddingBackend

# After its finish reason, a backend has only its usage left to report; that comes at once or not at all.
USAGE_SECONDS_MAX = 1.0


class Reader:
    """One request's way through its backends."""

    def __init__(
        self,
        *,
        request: BackendRequest | EmbeddingBackendRequest,
        backends: Sequence[Backend],
        buffer: DeltaBuffer,
        limits: Limits,
        observer: CallObserver,
    ) -> None:
        self._request = request
        self._backends = backends
        self._buffer = buffer
        self._limits = limits
        self._observer = observer
        self._began = False
        self._finish_reason: FinishReason | None = None
        self.attempts: list[Attempt] = []
        self.usage_reported: Usage | None = None
        self.embeddings: Embeddings | None = None  # the whole answer to an embedding request

    async def run(self) -> None:
        """Read one answer to its end, and end the buffer whatever happens."""
        try:
            self._buffer.finish(await self._read_from_any())
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - a defect of an adapter ends the request like any other failure
            error = exc if isinstance(exc, Exception) else MetergateError()
            self._buffer.finish(End(cause=CloseCause.GATEWAY_ERROR, error=error))

    async def _read_from_any(self) -> End:
        end = End(cause=CloseCause.BACKEND_ERROR)
        for backend in self._backends:
            self.attempts.append(Attempt(backend_id=backend.backend_id, problem=""))
            trace_context = self._observer.dispatched(backend.backend_id)
            try:
                finish_reason, problem = await self._read(backend, trace_context), ""
                end = End(cause=CloseCause.FINISHED, finish_reason=finish_reason)
            except TimeoutError:
                problem = "it kept the gateway waiting too long"
                end = End(cause=CloseCause.BACKEND_TIMEOUT, error=self._unavailable(problem))
            except (BackendUnavailable, BackendRejected) as exc:
                problem = exc.problem
                end = End(cause=CloseCause.BACKEND_ERROR, error=exc)
            if not problem:
                return end
            self.attempts[-1] = Attempt(backend_id=backend.backend_id, problem=problem)
            self._observer.failed_over(backend.backend_id, problem)
            if self._began or isinstance(end.error, BackendRejected):
                return end
        return end

    async def _read(self, backend: Backend, trace_context: Mapping[str, str]) -> FinishReason:
        """Read one backend's answer; TimeoutError if it keeps the gateway waiting."""
        self._began = False
        self.usage_reported = None
        self._finish_reason = None
        request = changed(self._request, trace_context=trace_context)
        if isinstance(request, EmbeddingBackendRequest):
            return await self._embed(backend, request)
        try:
            await self._read_events(backend.generate(request))
        except (TimeoutError, BackendUnavailable):
            # The answer was whole; only what may follow it, the usage, is missing.
            if self._finish_reason is None:
                raise
        if self._finish_reason is None:
            raise self._unavailable("it ended without a finish reason")
        return self._finish_reason

    async def _embed(self, backend: Backend, request: EmbeddingBackendRequest) -> FinishReason:
        """Keep the answer, which comes as a whole."""
        if not isinstance(backend, EmbeddingBackend):
            raise self._unavailable("it makes no vectors")
        async with asyncio.timeout(self._limits.first_token_seconds_max):
            self.embeddings = await backend.embed(request)
        self.usage_reported = self.embeddings.usage_reported
        return FinishReason.STOP

    async def _read_events(self, answer: AsyncGenerator[BackendEvent, None]) -> None:
        async with (
            aclosing(answer) as events,
            Patience(
                first_seconds=self._limits.first_token_seconds_max,
                between_seconds=self._limits.between_tokens_seconds_max,
            ) as patience,
        ):
            async for event in events:
                patience.renew()
                if isinstance(event, Delta):
                    self._began = True
                    if self._buffer.is_full():
                        # The app is slow, not the backend.
                        patience.pause()
                        await self._buffer.put(event)
                        patience.renew()
                    else:
                        await self._buffer.put(event)
                elif isinstance(event, Finish):
                    self._finish_reason = event.reason
                    patience.limit(USAGE_SECONDS_MAX)
                else:
                    self.usage_reported = event.usage

    def _unavailable(self, problem: str) -> BackendUnavailable:
        return BackendUnavailable(model_id=self._request.model_id, problem=problem)

"""Pulls a backend's answer into the buffer: within time limits, and from another backend while nothing came yet."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from metergate.core.changes import changed
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected, BackendUnavailable, MetergateError
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish, UsageReport
from metergate.core.reservation import CloseCause
from metergate.core.rows import Attempt, FinishReason
from metergate.core.standing import Event
from metergate.core.usage import Usage
from metergate.metering.buffer import DeltaBuffer, End
from metergate.metering.detokenizer import Detokenizer, detokenized
from metergate.metering.limits import Limits
from metergate.metering.patience import Patience
from metergate.metering.pool import Candidates, Place
from metergate.ports import CallObserver, EmbeddingBackend

# After its finish reason, a backend has only its usage left to report; that comes at once or not at all.
USAGE_SECONDS_MAX = 1.0

# Each attempt may cost the operator a prompt, and the app the time of a first token. What fails three times fails for a
# reason that a fourth backend shares, and an app that asks again is cheaper.
ATTEMPTS_MAX = 3


Empty = Callable[[], Awaitable[None]]


class Reader:
    """One request's way through its backends."""

    def __init__(
        self,
        *,
        request: BackendRequest | EmbeddingBackendRequest,
        candidates: Candidates,
        prompt_tokens: int,
        buffer: DeltaBuffer,
        limits: Limits,
        observer: CallObserver,
        detokenizer: Callable[[], Detokenizer] | None = None,
    ) -> None:
        """``detokenizer`` makes texts of the token ids of an answer; None: backends send texts."""
        self._request = request
        self._candidates = candidates
        self._prompt_tokens = prompt_tokens
        self._buffer = buffer
        self._limits = limits
        self._observer = observer
        self._detokenizer = detokenizer
        self._empty: Empty | None = None
        self._began = False
        self._finish_reason: FinishReason | None = None
        self._ended: list[Attempt] = []
        self._under_way: _Dispatch | None = None
        self._suspected: list[Place] = []  # that failed before a token came; whose fault it was, another backend tells
        self.usage_reported: Usage | None = None
        self.embeddings: Embeddings | None = None  # the whole answer to an embedding request

    async def run(self) -> None:
        """Read one answer to its end, and end the buffer whatever happens."""
        try:
            self._buffer.finish(await self.read())
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - a defect of an adapter ends the request like any other failure
            error = exc if isinstance(exc, Exception) else MetergateError()
            self._buffer.finish(End(cause=CloseCause.GATEWAY_ERROR, error=error))

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every dispatch so far; that under way as if it ended now."""
        under_way = () if self._under_way is None else (self._under_way.attempt(self._prompt_tokens, ""),)
        return (*self._ended, *under_way)

    @property
    def has_finished(self) -> bool:
        """Whether the backend ended its answer, so that what it reported is of the whole."""
        return self._finish_reason is not None

    async def read(self, *, empty: Empty | None = None) -> End:
        """Read one answer to its end, and say what that is.

        ``empty`` takes all that is in the buffer, when it is full; None: another task does.
        """
        self._empty = empty
        try:
            return await self._read_from_any()
        finally:
            self._empty = None  # it knows who knows this reader: a circle that would cost a search to be freed

    async def _read_from_any(self) -> End:
        end: End | None = None
        for _ in range(ATTEMPTS_MAX):
            try:
                place = await self._candidates.take()
            except BackendUnavailable as exc:
                if end is not None and isinstance(end.error, BackendUnavailable):
                    end.error.retry_seconds = exc.retry_seconds
                return end or End(cause=CloseCause.BACKEND_ERROR, error=exc)
            with place:
                end = await self._read_from(place)
                if _connection_was_kept(end):
                    end = await self._read_from(place, is_repeat=True)
            if end.error is None or self._began or isinstance(end.error, BackendRejected):
                return end
        assert end is not None
        return end

    async def _read_from(self, place: Place, *, is_repeat: bool = False) -> End:
        """Read the answer of the backend that the place is at, and say how it did."""
        backend_id = place.backend.backend_id
        self._under_way = _Dispatch(backend_id)
        trace_context = self._observer.dispatched(backend_id)
        prompt_tokens = self._prompt_tokens
        try:
            finish_reason = await self._read(
                place, changed(self._request, trace_context=trace_context, is_repeat=is_repeat)
            )
        except TimeoutError:
            problem = "it kept the gateway waiting too long"
            end = End(cause=CloseCause.BACKEND_TIMEOUT, error=self._unavailable(problem))
        except (BackendUnavailable, BackendRejected) as exc:
            problem = exc.problem
            end = End(cause=CloseCause.BACKEND_ERROR, error=exc)
            if isinstance(exc, BackendUnavailable) and (exc.connection_was_kept or not exc.was_reached):
                # Who closes a connection has not read what crosses that; who dies of it bills nothing.
                prompt_tokens = 0
        else:
            problem = ""
            end = End(cause=CloseCause.FINISHED, finish_reason=finish_reason)
        self._ended.append(self._under_way.attempt(prompt_tokens, problem))
        self._under_way = None
        if not is_repeat and _connection_was_kept(end):
            # That closes with no fault of anybody.
            self._observer.crossed(backend_id)
            return end
        self._judge(place, end)
        if problem:
            self._observer.failed_over(backend_id, problem)
        return end

    def _judge(self, place: Place, end: End) -> None:
        """Say what the end of an attempt tells of its backend.

        What fails at every backend may be the request's own fault, and is held against none of them.
        """
        error = end.error
        if error is None:
            self._blame_suspected()
        if error is None or isinstance(error, BackendRejected):
            place.note(Event.ANSWERED)
        elif self._began:
            place.note(Event.FAILED)
        elif isinstance(error, BackendUnavailable) and (error.takes_none or not error.was_reached):
            place.note(Event.TURNED_AWAY)
        else:
            self._suspected.append(place)

    def _blame_suspected(self) -> None:
        """The request is served: those that it failed at before had the fault."""
        for place in self._suspected:
            place.note(Event.FAILED)
        self._suspected.clear()

    async def _read(self, place: Place, request: BackendRequest | EmbeddingBackendRequest) -> FinishReason:
        """Read one backend's answer; TimeoutError if it keeps the gateway waiting."""
        self._began = False
        self.usage_reported = None
        self._finish_reason = None
        if isinstance(request, EmbeddingBackendRequest):
            return await self._embed(place, request)
        try:
            answer = place.backend.generate(request)
            if self._detokenizer is not None:
                answer = detokenized(answer, self._detokenizer())
            await self._read_events(place, answer)
        except (TimeoutError, BackendUnavailable):
            # The answer was whole; only what may follow it, the usage, is missing.
            if self._finish_reason is None:
                raise
        if self._finish_reason is None:
            raise self._unavailable("it ended without a finish reason")
        return self._finish_reason

    async def _embed(self, place: Place, request: EmbeddingBackendRequest) -> FinishReason:
        """Keep the answer, which comes as a whole."""
        backend = place.backend
        if not isinstance(backend, EmbeddingBackend):
            raise self._unavailable("it makes no vectors")
        async with asyncio.timeout(self._limits.first_token_seconds_max):
            self.embeddings = await backend.embed(request)
        self.usage_reported = self.embeddings.usage_reported
        self._finish_reason = FinishReason.STOP
        return self._finish_reason

    async def _read_events(self, place: Place, answer: AsyncGenerator[BackendEvent, None]) -> None:
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
                    if not self._began:
                        self._began = True
                        place.note(Event.BEGAN)
                        self._blame_suspected()
                    if not self._buffer.offer(event):
                        # The app is slow, not the backend.
                        patience.pause()
                        if self._empty is not None:
                            await self._empty()
                        await self._buffer.put(event)
                        patience.renew()
                elif isinstance(event, Finish):
                    self._finish_reason = event.reason
                    patience.limit(USAGE_SECONDS_MAX)
                elif isinstance(event, UsageReport):
                    self.usage_reported = event.usage
                    if self._finish_reason is None:
                        self._buffer.note_usage(event.usage)
                    # The report of the whole is weighed when it is settled: whether its last piece was captured by
                    # then is chance, and must not decide what is charged.
                else:
                    raise self._unavailable("it sent token ids of a model that is not counted by them")

    def _unavailable(self, problem: str) -> BackendUnavailable:
        return BackendUnavailable(model_id=self._request.model_id, problem=problem)


def _connection_was_kept(end: End) -> bool:
    return isinstance(end.error, BackendUnavailable) and end.error.connection_was_kept


class _Dispatch:
    """A request that a backend works on."""

    def __init__(self, backend_id: str) -> None:
        self._backend_id = backend_id
        self._loop = asyncio.get_running_loop()
        self._began_seconds = self._loop.time()

    def attempt(self, prompt_tokens: int, problem: str) -> Attempt:
        """What is recorded of it if it ends now."""
        return Attempt(
            backend_id=self._backend_id,
            problem=problem,
            prompt_tokens=prompt_tokens,
            milliseconds=round((self._loop.time() - self._began_seconds) * 1_000),
        )

"""A call while the use case has it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from metergate.core.embedding import EmbeddingRequest
from metergate.core.inference import InferenceRequest
from metergate.core.rows import Authorization
from metergate.metering.offering import Offering
from metergate.metering.run import Run
from metergate.ports import CallObserver, CallStart

# The app sent no trace context.
NO_TRACE: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True, kw_only=True)
class Call:
    """A call that was let in."""

    observer: CallObserver
    offering: Offering  # what was on sale when it came in
    began_seconds: float  # on the services' clock
    deadline: float | None  # on the loop's clock; None: the app set none
    is_streamed: bool  # somebody waits for its first token
    run: Run | None = None  # once it has a reservation
    reservation_id: str = ""  # that the call may have, from before it is asked for


def call_start(
    verb: str,
    caller: Authorization,
    request: InferenceRequest | EmbeddingRequest,
    trace_context: Mapping[str, str],
) -> CallStart:
    """What observers are told of a call that comes in."""
    return CallStart(
        verb=verb,
        caller=caller,
        model_id=request.model_id,
        request_id=request.request_id,
        trace_context=trace_context,
    )


def loop_deadline(time_left_seconds: float | None) -> float | None:
    """Return when, on the loop's clock, a cancel means that the app's deadline passed.

    gRPC rounds the time left up by as much as 1% on the wire, so an app's own clock cancels a little before ours.
    """
    if time_left_seconds is None:
        return None
    return asyncio.get_running_loop().time() + 0.99 * time_left_seconds - 0.05

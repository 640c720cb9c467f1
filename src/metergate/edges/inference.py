"""InferenceService: requests to the metering use case, its answers to the app."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from google.protobuf.descriptor import ServiceDescriptor
from grpc.aio import InternalError, UsageError

from metergate.core.errors import BackendRejected, ModelTaskWrong, PromptTooLong, RequestInvalid
from metergate.core.inference import Delta
from metergate.core.receipts import Admission, Receipt
from metergate.core.rows import Authorization
from metergate.edges.calls import Behaviour, Context
from metergate.edges.requests import read_count, read_embedding, read_inference, read_input_count
from metergate.edges.resources import rate_card_name, reservation_name
from metergate.edges.responses import COUNTING_SOURCES, delta_message, message_message, receipt_message
from metergate.edges.trace_context import read_trace_context
from metergate.metering.use_case import Metering
from metergate.v1 import embedding_pb2, inference_pb2


class StreamSink:
    """The app's end of one stream.

    ``write`` serializes the event before it first waits, so one event serves for all deltas of plain text, which are
    nearly all: that costs a third of building new ones.
    """

    def __init__(self, write: Callable[[inference_pb2.StreamCompleteResponse], Awaitable[None]]) -> None:
        self._write_event = write
        self._text_event = inference_pb2.StreamCompleteResponse()
        self._text_delta = self._text_event.delta

    async def admit(self, admission: Admission) -> None:
        """Write the admission."""
        message = inference_pb2.Admission(
            reservation=reservation_name(admission.subscriber_id, admission.reservation_id),
            prompt_tokens=admission.prompt_tokens,
            rate_card=rate_card_name(admission.model_id, admission.rate_card_id),
        )
        await self._write(inference_pb2.StreamCompleteResponse(admission=message))

    async def deliver(self, delta: Delta) -> None:
        """Write a piece of the answer; CancelledError if nobody can read it any more."""
        if delta.tool_calls or delta.reasoning_content:
            await self._write(inference_pb2.StreamCompleteResponse(delta=delta_message(delta)))
        else:
            self._text_delta.content = delta.content
            await self._write(self._text_event)

    async def receipt(self, receipt: Receipt) -> None:
        """Write the receipt."""
        await self._write(inference_pb2.StreamCompleteResponse(receipt=receipt_message(receipt)))

    async def _write(self, event: inference_pb2.StreamCompleteResponse) -> None:
        try:
            await self._write_event(event)
        except (InternalError, UsageError) as exc:
            # The connection broke, and gRPC is about to cancel this call: the write only knew first.
            raise asyncio.CancelledError from exc


@contextmanager
def _named_within_inference() -> Iterator[None]:
    """Behind the edge, fields of a prompt are named as in CountTokensRequest; here they are those of ``inference``."""
    try:
        yield
    except RequestInvalid as error:
        violations = (replace(violation, field=f"inference.{violation.field}") for violation in error.violations)
        raise RequestInvalid(*violations) from error
    except (PromptTooLong, BackendRejected, ModelTaskWrong) as error:
        error.field = "inference" if error.field == "request" else f"inference.{error.field}"
        raise


class InferenceServicer:
    """Runs models for apps."""

    service: ServiceDescriptor = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]

    def __init__(self, metering: Metering) -> None:
        self._metering = metering

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does."""
        return {
            "Complete": self._complete,
            "StreamComplete": self._stream_complete,
            "Embed": self._embed,
            "CountTokens": self._count_tokens,
        }

    async def _complete(
        self, caller: Authorization, request: inference_pb2.CompleteRequest, context: Context
    ) -> inference_pb2.CompleteResponse:
        asked = read_inference(request)
        with _named_within_inference():
            completion = await self._metering.complete(
                caller, asked, time_left_seconds=context.time_remaining(), trace_context=_trace_context(context)
            )
        return inference_pb2.CompleteResponse(
            message=None if completion.message is None else message_message(completion.message),
            reasoning_content=completion.reasoning_content,
            receipt=receipt_message(completion.receipt),
        )

    async def _stream_complete(
        self, caller: Authorization, request: inference_pb2.StreamCompleteRequest, context: Context
    ) -> None:
        # A coroutine that writes, not an asynchronous generator: so the sink knows when a write begins and ends.
        asked, sink = read_inference(request), StreamSink(context.write)
        with _named_within_inference():
            await self._metering.stream(
                caller, asked, sink, time_left_seconds=context.time_remaining(), trace_context=_trace_context(context)
            )

    async def _embed(
        self, caller: Authorization, request: inference_pb2.EmbedRequest, context: Context
    ) -> inference_pb2.EmbedResponse:
        embedded = await self._metering.embed(
            caller,
            read_embedding(request),
            time_left_seconds=context.time_remaining(),
            trace_context=_trace_context(context),
        )
        vectors = () if embedded.embeddings is None else embedded.embeddings.vectors
        return inference_pb2.EmbedResponse(
            embeddings=[embedding_pb2.Embedding(values=vector) for vector in vectors],
            receipt=receipt_message(embedded.receipt),
        )

    async def _count_tokens(
        self, caller: Authorization, request: inference_pb2.CountTokensRequest, context: Context
    ) -> inference_pb2.CountTokensResponse:
        trace_context = _trace_context(context)
        if request.inputs:
            quote = await self._metering.count_inputs(caller, *read_input_count(request), trace_context=trace_context)
        else:
            quote = await self._metering.count_tokens(caller, *read_count(request), trace_context=trace_context)
        return inference_pb2.CountTokensResponse(
            prompt_tokens=quote.prompt_tokens,
            completion_tokens_max=quote.completion_tokens_max,
            prompt_microcredits=quote.prompt_microcredits,
            cost_microcredits_max=quote.cost_microcredits_max,
            rate_card=rate_card_name(quote.model_id, quote.rate_card.rate_card_id),
            counting_source=COUNTING_SOURCES[quote.counting_source],
        )


def _trace_context(context: Context) -> Mapping[str, str]:
    return read_trace_context(context.invocation_metadata() or ())

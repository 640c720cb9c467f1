"""The app of a bench: the same request through the gateway and through the pass-through."""

import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

from bench.processes import MODEL, Served, World
from metergate.v1 import backend_pb2, chat_pb2, inference_pb2, inference_pb2_grpc

QUESTION = "What is a tide, and why does it come twice a day?"
# Every piece is one token of the vocabulary; this leaves room.
TOKENS_A_PIECE_MAX = 2
TOKENS_SPARE = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What the backend is asked to answer: so many pieces of one token, so many microseconds apart."""

    pieces: int
    pause_us: int

    def messages(self) -> list[chat_pb2.Message]:
        """The prompt that asks for it."""
        part = chat_pb2.ContentPart(text=f"{self.pieces} {self.pause_us} {QUESTION}")
        return [chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[part])]

    @property
    def tokens_max(self) -> int:
        """More than it has."""
        return TOKENS_A_PIECE_MAX * self.pieces + TOKENS_SPARE


class Way(Protocol):
    """One way to the backend."""

    served: Served
    deliveries: int  # pieces of answers that came so far

    async def stream(self, answer: Answer) -> float:
        """Read a streamed answer to its end; the seconds until its first piece came."""
        ...

    async def whole(self, answer: Answer) -> None:
        """Get a whole answer by one unary call."""
        ...


class GatewayWay:
    """Through Metergate."""

    def __init__(self, channel: grpc.aio.Channel, world: World) -> None:
        self.served = world.gateway
        self.deliveries = 0
        self._stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {world.key}"),)

    async def stream(self, answer: Answer) -> float:
        """See ``Way``."""
        request = inference_pb2.StreamCompleteRequest(inference=_inference(answer))
        began, first = time.perf_counter(), 0.0
        event = inference_pb2.StreamCompleteResponse()
        async for event in self._stub.StreamComplete(request, metadata=self._metadata):
            if event.HasField("delta"):
                self.deliveries += 1
                first = first or time.perf_counter() - began
        assert event.receipt.close_cause == inference_pb2.CLOSE_CAUSE_FINISHED, event
        return first

    async def whole(self, answer: Answer) -> None:
        """See ``Way``."""
        request = inference_pb2.CompleteRequest(inference=_inference(answer))
        response = await self._stub.Complete(request, metadata=self._metadata)
        assert response.receipt.charged_microcredits > 0, response


class PassThroughWay:
    """Through the yardstick."""

    def __init__(self, channel: grpc.aio.Channel, world: World) -> None:
        self.served = world.pass_through
        self.deliveries = 0
        self._stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/metergate.v1.BackendService/Generate"
        )
        self._whole: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/metergate.v1.BackendService/Whole"
        )

    async def stream(self, answer: Answer) -> float:
        """See ``Way``."""
        began = time.perf_counter()
        messages: AsyncIterable[bytes] = self._stream(_generate(answer))
        first = 0.0
        async for _ in messages:
            self.deliveries += 1
            first = first or time.perf_counter() - began
        return first

    async def whole(self, answer: Answer) -> None:
        """See ``Way``."""
        await self._whole(_generate(answer))


@asynccontextmanager
async def ways(world: World) -> AsyncIterator[tuple[Way, Way]]:
    """The gateway and the pass-through."""
    async with (
        grpc.aio.insecure_channel(world.gateway.address) as gateway,
        grpc.aio.insecure_channel(world.pass_through.address) as pass_through,
    ):
        yield GatewayWay(gateway, world), PassThroughWay(pass_through, world)


def _inference(answer: Answer) -> inference_pb2.Inference:
    return inference_pb2.Inference(
        request_id=uuid.uuid4().hex,
        model=f"models/{MODEL}",
        messages=answer.messages(),
        max_completion_tokens=answer.tokens_max,
    )


def _generate(answer: Answer) -> bytes:
    request = backend_pb2.GenerateRequest(
        model=MODEL, messages=answer.messages(), max_completion_tokens=answer.tokens_max
    )
    return request.SerializeToString()

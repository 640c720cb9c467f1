"""A third-party app: it calls a gateway over gRPC and remembers what arrived."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from edge_harness import Refusal, bearer, refusal_of

from metergate.v1 import account_pb2_grpc, chat_pb2, inference_pb2, inference_pb2_grpc, usage_pb2

# No test waits for an event for longer than this.
EVENT_SECONDS_MAX = 20.0


PROMPT = "Tell me of the sea."


def inference(request_id: str, text: str = PROMPT, **fields: Any) -> inference_pb2.Inference:
    """A request of one user's message."""
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text=text)])
    return inference_pb2.Inference(request_id=request_id, model="models/smollm2", messages=[message], **fields)


def tokens(usage: usage_pb2.Usage) -> dict[str, int]:
    """A usage by the class's short name; classes without a token are left out."""
    return {
        usage_pb2.TokenClass.Name(count.token_class).removeprefix("TOKEN_CLASS_"): count.tokens
        for count in usage.token_counts
        if count.tokens
    }


def cause(receipt: inference_pb2.Receipt) -> str:
    """Why the request left the gateway."""
    return inference_pb2.CloseCause.Name(receipt.close_cause).removeprefix("CLOSE_CAUSE_")


def finish(receipt: inference_pb2.Receipt) -> str:
    """Why the answer ended."""
    return chat_pb2.FinishReason.Name(receipt.finish_reason).removeprefix("FINISH_REASON_")


@dataclass
class Answer:
    """What has arrived of one stream, as it arrives."""

    call: Any
    admission: inference_pb2.Admission | None = None
    deliveries: list[str] = field(default_factory=list)
    receipt: inference_pb2.Receipt | None = None
    refusal: Refusal | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: "asyncio.Task[None] | None" = None

    @property
    def text(self) -> str:
        """All content so far."""
        return "".join(self.deliveries)

    @property
    def admitted(self) -> inference_pb2.Admission:
        """The admission, which must have come."""
        assert self.admission is not None, self.refusal
        return self.admission

    @property
    def receipted(self) -> inference_pb2.Receipt:
        """The receipt, which must have come."""
        assert self.receipt is not None, self.refusal
        return self.receipt

    @property
    def refused(self) -> Refusal:
        """The error, which must have come."""
        assert self.refusal is not None, self.receipt
        return self.refusal

    async def read(self) -> None:
        """Read to the end."""
        try:
            async for event in self.call:
                match event.WhichOneof("event"):
                    case "admission":
                        assert not self.deliveries
                        self.admission = event.admission
                    case "delta":
                        assert self.receipt is None
                        self.deliveries.append(event.delta.content)
                    case _:
                        self.receipt = event.receipt
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            if rpc_has_details(error):
                self.refusal = refusal_of(error)
            else:
                self.refusal = Refusal(error.code(), error.details() or "", "", {}, {}, None)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the test itself ends: Ctrl-C, or a time limit
            # The app cancelled its own call; what arrived until then stays.
        finally:
            self._changed.set()

    def begin(self) -> Self:
        """Read in the background."""
        self._reading = asyncio.get_running_loop().create_task(self.read())
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that arrived makes the condition true."""
        assert self._reading is not None
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            while not condition():
                assert not self._reading.done(), (self.receipt, self.refusal)
                self._changed.clear()
                await self._changed.wait()

    async def until_characters(self, count: int) -> None:
        """Wait until so much text has arrived."""
        await self.until(lambda: len(self.text) >= count)

    async def ended(self) -> Self:
        """Wait for the end of the stream, whatever it is."""
        assert self._reading is not None
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            await self._reading
        return self


def rpc_has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether the gateway, rather than gRPC itself, ended the call."""
    return any(name == "grpc-status-details-bin" for name, _ in error.trailing_metadata() or ())


class App:
    """One connection of an app with its key."""

    def __init__(self, port: int, key: str) -> None:
        # Each app has a connection of its own, as apps do.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self.metadata = bearer(key)
        self.inference: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(
            self.channel
        )
        self.account: account_pb2_grpc.AccountServiceAsyncStub = account_pb2_grpc.AccountServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close()

    def stream(self, request: inference_pb2.Inference, *, deadline_seconds: float | None = None) -> Answer:
        """Begin a stream and read it in the background."""
        call = self.inference.StreamComplete(
            inference_pb2.StreamCompleteRequest(inference=request), metadata=self.metadata, timeout=deadline_seconds
        )
        return Answer(call).begin()

    async def until_served(self, request: inference_pb2.Inference) -> Answer:
        """Ask while the store is away, as apps do: again, when they are told to."""
        async with asyncio.timeout(EVENT_SECONDS_MAX):
            while (answer := await self.stream(request).ended()).receipt is None:
                assert answer.refused.reason == "STORE_UNAVAILABLE"
                await asyncio.sleep(answer.refused.retry_seconds or 1)
        return answer

    async def complete(self, request: inference_pb2.Inference) -> inference_pb2.CompleteResponse:
        """Run a request to its end."""
        return await self.inference.Complete(
            inference_pb2.CompleteRequest(inference=request), metadata=self.metadata, timeout=EVENT_SECONDS_MAX
        )

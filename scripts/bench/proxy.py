"""The bench's yardstick: a bare grpc.aio pass-through of BackendService that reads nothing of what it forwards."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

GENERATE = "/metergate.v1.BackendService/Generate"


class PassThrough(grpc.GenericRpcHandler):
    """Forwards streams as bytes; ``Whole`` is a unary call that reads a stream to its end, as Complete must."""

    def __init__(self, backend: str) -> None:
        channel = grpc.aio.insecure_channel(backend)
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)

    def service(self, call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 - grpc's own type is Any
        """Handle both methods."""
        if call_details.method.endswith("/Generate"):
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._whole)

    async def _stream(self, request: bytes, _context: object) -> AsyncIterator[bytes]:
        async for message in self._generate(request):
            yield message

    async def _whole(self, request: bytes, _context: object) -> bytes:
        return b"".join([message async for message in self._generate(request)])


async def main(backend: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((PassThrough(backend),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))

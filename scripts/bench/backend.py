"""The bench's backend: BackendService that costs as little as it can, and streams as its prompt says.

The prompt begins with how many pieces of one token the answer has, and how many microseconds apart they come
(0: as fast as they are taken): ``250 20000 What is a tide?``.
"""

import asyncio
import itertools

import grpc
import uvloop

from metergate.v1 import backend_pb2, chat_pb2

WORDS = ("the", " sea", " was", " calm", " and", " the", " old", " man", " sat", " by", " his", " boat", ".")
# Bytes: they are encoded once.
PIECES = tuple(backend_pb2.GenerateResponse(delta=chat_pb2.Delta(content=word)).SerializeToString() for word in WORDS)
FINISH = backend_pb2.GenerateResponse(finish_reason=chat_pb2.FINISH_REASON_STOP).SerializeToString()

Context = grpc.aio.ServicerContext[backend_pb2.GenerateRequest, bytes]


async def generate(request: backend_pb2.GenerateRequest, context: Context) -> None:
    """Stream as many words as the prompt asks for."""
    count, pause_us, _ = request.messages[0].content_parts[0].text.split(" ", 2)
    pause_seconds = int(pause_us) / 1_000_000
    loop = asyncio.get_running_loop()
    due = loop.time()
    for piece in itertools.islice(itertools.cycle(PIECES), int(count)):
        if pause_seconds:
            due += pause_seconds
            await asyncio.sleep(due - loop.time())
        await context.write(piece)
    await context.write(FINISH)


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[backend_pb2.GenerateRequest, bytes] = grpc.unary_stream_rpc_method_handler(
        generate, request_deserializer=backend_pb2.GenerateRequest.FromString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("metergate.v1.BackendService", {"Generate": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())

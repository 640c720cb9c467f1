"""L11, in a busy gateway at debug level: nothing that apps, models and operators keep to themselves leaves it.

Every text of a request, of an answer and every key is a word of its own; all output of the process is searched for it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from app_client import Answer, App, inference
from gateway_process import GatewayProcess, open_wallets, write_config
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from scripted_backend import CLOSE, HANG, RESET, ScriptedServer, Step, head, scripted_server

from metergate.core.keys import format_key
from metergate.v1 import chat_pb2, inference_pb2

PROMPT = "zanzibar-quetzal"
SYSTEM = "saffron-lighthouse"
ANSWER = "marmalade-obelisk"
REASONING = "vermilion-trombone"
TOOL = "periwinkle_gasket"
ARGUMENTS = "cinnamon-catapult"
STOP_TEXT = "walrus-chandelier"
SCHEMA = "tangerine-barnacle"
BACKEND_KEY = "sk-molybdenum-pelican"
BACKEND_TEXT = "gossamer-bulldozer"  # what a failing backend says
UNKNOWN_KEY = format_key(b"0123456789abcdefghijklmnopqrstuv")
MALFORMED_KEY = "mgk-hibiscus-anvil"
UNKNOWN_FIELD = "nutmeg-harpsichord"

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def event(**delta: object) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode()


def call(arguments: str) -> dict[str, object]:
    return {"index": 0, "id": "call-1", "function": {"name": TOOL, "arguments": arguments}}


END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
# Of an error answer, what looks like a name (invalid_request) is told; here nothing else does.
ERROR = {"message": f"{BACKEND_TEXT} {PROMPT}", "type": "invalid_request", "code": f"{BACKEND_TEXT} {PROMPT}"}
QUOTED = json.dumps({"error": ERROR}).encode()
ANSWERED = [
    event(reasoning_content=REASONING),
    event(content=ANSWER),
    event(tool_calls=[call(f'{{"a":"{ARGUMENTS}"}}')]),
]

SCRIPTS: list[list[Step]] = [
    [head(), *ANSWERED, END, CLOSE],
    [head(), *ANSWERED, b"data: " + BACKEND_TEXT.encode() + b"\n\n", CLOSE],
    [head(), *ANSWERED, b"data: " + QUOTED + b"\n\n", CLOSE],
    [head(), *ANSWERED, RESET],
    [head("application/json", "400 Bad Request"), QUOTED, CLOSE],
    [head("application/json", "500 Internal Server Error"), QUOTED, CLOSE],
    [head("text/html"), f"<html>{BACKEND_TEXT} {PROMPT}</html>".encode(), CLOSE],
    [head(extra=f"{BACKEND_TEXT}\x01\r\n"), CLOSE],
    [f"{BACKEND_TEXT} {PROMPT}\r\n\r\n".encode(), CLOSE],
]


def asked(request_id: str, **fields: Any) -> inference_pb2.Inference:
    """A request with a word of its own in each place that takes text."""
    request = inference(request_id, f"Say {PROMPT}.", **fields)
    request.messages.add(role=chat_pb2.ROLE_SYSTEM).content_parts.add(text=SYSTEM)
    assistant = request.messages.add(role=chat_pb2.ROLE_ASSISTANT)
    assistant.tool_calls.add(tool_call_id="call-1", name=TOOL, arguments=f'{{"a":"{ARGUMENTS}"}}')
    request.messages.add(role=chat_pb2.ROLE_TOOL, tool_call_id="call-1").content_parts.add(text=ARGUMENTS)
    request.tools.add(name=TOOL, description=SCHEMA, parameters_json_schema=json.dumps({"title": SCHEMA}))
    request.sampling.stop.append(STOP_TEXT)
    return request


def bad_requests() -> list[inference_pb2.Inference]:
    """Requests that are refused, each for another text in it."""
    requests = [asked(f"bad-{number}") for number in range(5)]
    requests[0].tools[0].parameters_json_schema = f"{{{SCHEMA}"
    requests[1].messages[2].tool_calls[0].arguments = f"[{ARGUMENTS}"
    requests[2].messages[0].content_parts[0].text = f"{PROMPT}\x00"
    requests[3].sampling.stop.append(STOP_TEXT * 100)
    requests[4].messages[0].content_parts[0].text = f"{PROMPT} " * 5_000
    return requests


@dataclass
class Busy:
    """A gateway process, and everything that it said to anybody."""

    gateway: GatewayProcess
    app: App
    key: str
    server: ScriptedServer
    said: list[bytes]

    async def answered(self, answer: Answer) -> None:
        """Keep how a stream ended."""
        await answer.ended()
        details = await answer.call.details()
        self.said += [repr((details, await answer.call.trailing_metadata())).encode()]

    async def completed(self, request: inference_pb2.Inference, key: str | None = None) -> None:
        """Ask for a whole answer, and keep the error if there is one."""
        metadata = self.app.metadata if key is None else (("authorization", f"Bearer {key}"),)
        try:
            await self.app.inference.Complete(
                inference_pb2.CompleteRequest(inference=request), metadata=metadata, timeout=20
            )
        except grpc.aio.AioRpcError as error:
            self.said += [repr((error.details(), error.trailing_metadata())).encode()]


@asynccontextmanager
async def busy_gateway(folder: Path, collector: str) -> AsyncIterator[Busy]:
    keys = await open_wallets(folder / "ledger.db", {"alice": 100_000_000})
    async with scripted_server() as server:
        config = write_config(folder, f'kind = "openai"\nurl = "{server.url}"\napi_key_env = "BACKEND_KEY"')
        more = f'\n[logs]\nlevel = "debug"\n\n[traces]\nendpoint = "{collector}"\n'
        config.write_text(config.read_text() + more)
        with GatewayProcess(folder) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                yield Busy(gateway, app, keys["alice"].partition("_")[2] or keys["alice"], server, [])


async def keep_busy(busy: Busy) -> None:
    """Every end that a request can have, as far as an app and a backend can make them."""
    for number, script in enumerate(SCRIPTS):
        busy.server.script = script
        await busy.answered(busy.app.stream(asked(f"stream-{number}")))
        await busy.completed(asked(f"whole-{number}"))
        # One whole answer between the failures: five of those in a row, and the backend would be left out.
        busy.server.script = SCRIPTS[0]
        await busy.completed(asked(f"good-{number}"))
    await busy.completed(asked("stream-0", max_completion_tokens=3))  # charged, with other content
    for request in bad_requests():
        await busy.completed(request)
    for key in (UNKNOWN_KEY, MALFORMED_KEY):
        await busy.completed(asked("denied"), key)
    unknown_field = b"\x9a\x7d" + bytes([len(UNKNOWN_FIELD)]) + UNKNOWN_FIELD.encode()
    await busy.completed(inference_pb2.Inference.FromString(asked("unknown").SerializeToString() + unknown_field))
    busy.server.script = [head(), *ANSWERED, HANG]
    cancelled = busy.app.stream(asked("cancelled"))
    await cancelled.until(lambda: bool(cancelled.text))
    cancelled.call.cancel()
    await cancelled.ended()
    await busy.answered(busy.app.stream(asked("late"), deadline_seconds=1.0))


def found(secrets: Sequence[str], places: dict[str, bytes]) -> list[tuple[str, str]]:
    """Which secret is where."""
    return [(secret, place) for secret in secrets for place, content in places.items() if secret.encode() in content]


def stored(folder: Path) -> dict[str, bytes]:
    """What the store's files hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("ledger")}


def metrics_of(gateway: GatewayProcess) -> bytes:
    """What Prometheus would scrape."""
    with urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=20) as response:
        return bytes(response.read())


async def test_no_text_and_no_key_is_in_any_output_of_a_busy_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKEND_KEY", BACKEND_KEY)
    async with scripted_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as collector:
        async with busy_gateway(tmp_path, collector.url.removesuffix("/v1")) as busy:
            await keep_busy(busy)
            metrics = await asyncio.to_thread(metrics_of, busy.gateway)
            await asyncio.to_thread(busy.gateway.stop)
        spans = b"".join(received.body for received in collector.received)
    places = stored(tmp_path) | {
        "the log": "".join(busy.gateway.lines()).encode(),
        "the spans": spans,
        "the metrics": metrics,
        "errors": b"".join(busy.said),
    }
    # What is there is found where it is looked for.
    assert {place for _, place in found(["alice"], places)} >= {"ledger.db", "the log", "the spans", "errors"}
    assert found(["stream-0", "cancelled"], {"the log": places["the log"]})
    assert found(["metergate_requests_total"], {"the metrics": metrics})
    assert "BACKEND_UNAVAILABLE" in str(busy.said)
    assert f"Bearer {BACKEND_KEY}" in busy.server.received[0].head
    texts = [PROMPT, SYSTEM, ANSWER, REASONING, TOOL, ARGUMENTS, STOP_TEXT, SCHEMA, BACKEND_TEXT, UNKNOWN_FIELD]
    assert found([*texts, BACKEND_KEY, UNKNOWN_KEY, MALFORMED_KEY, busy.key], places) == []
    # And the log is one that a machine can read, with a line for every request.
    lines = [json.loads(line) for line in busy.gateway.lines()]
    ended = {line["request_id"] for line in lines if line["event"] == "request ended"}
    assert {f"stream-{number}" for number in range(len(SCRIPTS))} | {"cancelled", "late"} <= ended
    refused = [line["outcome"] for line in lines if line["event"] == "call refused"]
    assert refused.count("UNAUTHENTICATED") == 2
    assert refused.count("INVALID_REQUEST") >= 4


async def test_the_app_the_gateway_and_the_backend_are_in_one_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKEND_KEY", BACKEND_KEY)
    async with scripted_server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as collector:
        async with busy_gateway(tmp_path, collector.url.removesuffix("/v1")) as busy:
            busy.server.script = SCRIPTS[0]
            await busy.app.inference.Complete(
                inference_pb2.CompleteRequest(inference=inference("one")),
                metadata=(*busy.app.metadata, ("traceparent", PARENT)),
            )
            await asyncio.to_thread(busy.gateway.stop)
        [sent] = [line for line in busy.server.received[0].head.split("\r\n") if line.startswith("traceparent: ")]
    spans = exported(collector)
    trace_id, parent_id = PARENT.split("-")[1:3]
    assert {span.trace_id.hex() for span in spans.values()} == {trace_id}
    assert spans["metergate.v1.InferenceService/Complete"].parent_span_id.hex() == parent_id
    assert sent == f"traceparent: 00-{trace_id}-{spans['dispatch'].span_id.hex()}-01"


def exported(collector: ScriptedServer) -> dict[str, Span]:
    """The spans that a collector got, by name."""
    requests = [ExportTraceServiceRequest.FromString(received.body) for received in collector.received]
    return {
        span.name: span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }

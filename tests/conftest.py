"""The real model server, started once a session by the first test that asks for it; tests of both versions of HTTP."""

from collections.abc import Iterator

import either_http
import pytest
from llama_process import llama_process


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """The base URL of a llama.cpp server with SmolLM2-135M: two slots of 2048 tokens, one thread."""
    with llama_process() as process:
        yield process.url


@pytest.fixture(scope="session")
def llama_embeddings() -> Iterator[str]:
    """The base URL of a llama.cpp server that makes vectors with SmolLM2-135M: one slot of 512 tokens, one thread."""
    with llama_process("--embeddings", "--parallel", "1", "--context", "512") as process:
        yield process.url


@pytest.fixture(params=["1.1", "2"], ids=["HTTP/1.1", "HTTP/2"])
def http_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of HTTP to backends that this run of the test speaks."""
    monkeypatch.setattr(either_http, "http_version", request.param)
    return str(request.param)

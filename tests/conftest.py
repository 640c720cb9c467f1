"""The real model server, started once a session by the first test that asks for it."""

from collections.abc import Iterator

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

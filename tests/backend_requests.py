"""Requests to a backend with sensible values, for tests that care about a few of them."""

from typing import Any

from metergate.core.inference import BackendRequest, Message, Prompt, ResponseFormat, Role, Sampling


def a_request(text: str = "Hello", **values: Any) -> BackendRequest:
    """A request of one user's message."""
    defaults: dict[str, Any] = {
        "model_id": "smol",
        "prompt": Prompt(messages=(Message(role=Role.USER, parts=(text,)),)),
        "sampling": Sampling(),
        "response_format": ResponseFormat(),
        "max_completion_tokens": 16,
    }
    return BackendRequest(**(defaults | values))

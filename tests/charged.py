"""What the books charged against what arrived."""

from collections.abc import Mapping

from app_client import Answer
from gateway_process import Books, cost


def check_charged(books: Books, answers: Mapping[str, Answer]) -> None:
    """Assert that each answer of which text arrived, by its request's id, was charged what that text costs (L1)."""
    charges = books.charges()
    for request_id, answer in answers.items():
        if answer.text:
            charged_microcredits, _ = charges[request_id]
            assert cost(answer.admitted.prompt_tokens, answer.text) <= charged_microcredits

"""What is checked of an embedding answer, whatever the backend's protocol: how many vectors, how long, how finite.

A vector that is wrong is worse than none: it is stored in an app's index, and nobody sees it there.
"""

import math
from array import array
from collections.abc import Iterable, Mapping

from metergate.core.embedding import EmbeddingBackendRequest, Vector
from metergate.core.errors import BackendUnavailable
from metergate.core.usage import TokenClass, Usage

# Making numbers of larger answers belongs in a thread: about two milliseconds' work.
IN_LOOP_NUMBERS_MAX = 16_384

_PROMPT_CLASSES = frozenset({TokenClass.PROMPT, TokenClass.CACHED_PROMPT})


def checked_vectors(
    request: EmbeddingBackendRequest, answered: Iterable[tuple[int, "Vector[float]"]]
) -> "tuple[Vector[float], ...]":
    """The vectors in the order of their inputs, from (index, vector); BackendUnavailable if they are not as asked."""
    by_index: dict[int, Vector[float]] = {}
    for index, vector in answered:
        if not 0 <= index < len(request.inputs):
            raise unusable(request, "it sent a vector of an input that was not asked")
        if index in by_index:
            raise unusable(request, "it sent two vectors of one input")
        if len(vector) != request.dimensions:
            raise unusable(request, f"it sent a vector of {len(vector)} numbers, not of {request.dimensions}")
        if not all(map(math.isfinite, vector)):
            raise unusable(request, "it sent a vector with a number that is not finite")
        by_index[index] = vector
    if len(by_index) != len(request.inputs):
        raise unusable(request, f"it sent {len(by_index)} vectors for {len(request.inputs)} inputs")
    return tuple(by_index[index] for index in range(len(request.inputs)))


def single_precision(numbers: Iterable[float]) -> "Vector[float]":
    """A vector of these numbers; those beyond single precision become infinite."""
    return array("f", numbers)


def prompt_usage(tokens: Mapping[TokenClass, int]) -> Usage | None:
    """A report of prompt classes; None if it has another class or cannot be true."""
    if not _PROMPT_CLASSES.issuperset(tokens) or any(count < 0 for count in tokens.values()):
        return None
    return Usage.of(tokens)


def unusable(request: EmbeddingBackendRequest, problem: str) -> BackendUnavailable:
    """The error of an answer that makes no sense."""
    return BackendUnavailable(model_id=request.model_id, problem=problem)

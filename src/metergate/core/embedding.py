"""An embedding request and what a backend answers: a vector for each input, in the order of the inputs."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metergate.core.usage import Usage

# Single-precision numbers, as every model computes them: a fifth of the memory that Python's own would take.
Vector = array  # of type code "f"

# More is a batch job in disguise; OpenAI's own bound.
INPUTS_MAX = 2_048

# Of one answer, over all its vectors: 4,000,000 bytes, and gRPC's clients take messages of 4 MiB.
NUMBERS_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A validated request of an app."""

    request_id: str
    model_id: str
    inputs: tuple[str, ...]  # 1 to INPUTS_MAX, none of them empty
    dimensions: int | None = None  # >= 1; None: as many as the model has
    credit_limit_microcredits: int | None = None  # > 0; None: no limit of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingBackendRequest:
    """What is sent to a backend."""

    model_id: str  # the model's id in this gateway; the adapter knows the backend's own name for it
    inputs: tuple[str, ...]
    dimensions: int  # what every vector of the answer must have
    asks_dimensions: bool  # whether the backend is told; else its vectors have so many anyway
    trace_context: Mapping[str, str] = field(default_factory=dict)  # W3C traceparent and tracestate, sent as headers
    is_repeat: bool = False  # a kept connection ended instead of an answer to it: it is sent on a new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A whole answer."""

    vectors: "Sequence[Vector[float]]"  # as many as inputs, each of ``dimensions`` finite numbers
    usage_reported: Usage | None = None  # of prompt classes only; None: the backend reported none

    def numbers(self) -> int:
        """How many numbers it has."""
        return sum(map(len, self.vectors))

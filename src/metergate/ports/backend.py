"""What runs models, and who watches the pool of it."""

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.inference import BackendEvent, BackendRequest


class Backend(Protocol):
    """A server that runs models."""

    @property
    def backend_id(self) -> str:
        """Its id in the configuration."""
        ...

    def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        """Run the request. Closing the generator stops the generation on the backend.

        Raises BackendUnavailable (it could not be reached, failed, or answered nonsense) or BackendRejected (it refused
        the request as such; another backend would too).
        """
        ...

    async def is_up(self) -> bool:
        """Whether it can be reached now, by a look that runs no model. Never raises."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


@runtime_checkable
class EmbeddingBackend(Protocol):
    """A backend that turns texts into vectors too."""

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        """Return a vector for each input; cancelling the call gives it up.

        Raises BackendUnavailable or BackendRejected as ``Backend.generate`` does; vectors that are not as many, as long
        or as finite as they must be are an answer that is nonsense.
        """
        ...


class PoolObserver(Protocol):
    """Watches the backends' pool. No method waits or raises."""

    def waited(self, model_id: str, seconds: float, *, has_place: bool) -> None:
        """A request waited for a backend, and got one or not."""
        ...

    def ejected(self, backend_id: str, model_id: str) -> None:
        """A backend is left out for a while, for one model."""
        ...

"""What is on sale: it is replaced as a whole, and each call keeps the one it came in under until it is settled."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from metergate.core.catalog import Catalog
from metergate.metering.pool import Pool
from metergate.ports import TokenCodec, Tokenizer

# Every model is counted by its texts.
NO_CODECS: Mapping[str, TokenCodec] = MappingProxyType({})


class Offering:
    """Models, how each is counted, what runs them, and how many calls depend on it."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        tokenizers: Mapping[str, Tokenizer],
        pool: Pool,
        codecs: Mapping[str, TokenCodec] = NO_CODECS,
    ) -> None:
        """``tokenizers`` are by model id; they and the pool's backends are all that the catalog names.

        A model without one is counted by its backends. ``codecs`` are by model id: of all that are counted by their
        token ids.
        """
        self.catalog = catalog
        self.tokenizers = tokenizers
        self.codecs = codecs
        self.pool = pool
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Count a call that depends on it."""
        self._calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count one less."""
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no call depends on it: once it was replaced, none will any more."""
        await self._idle.wait()

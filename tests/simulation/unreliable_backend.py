"""What a gateway asks while a request runs, and what goes wrong there: backends, and a content policy."""

import asyncio
from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator

from metering_world import count_words

from metergate.core.embedding import EmbeddingBackendRequest, Embeddings
from metergate.core.errors import BackendRejected, BackendUnavailable, ContentPolicyUnavailable
from metergate.core.inference import BackendEvent, BackendRequest, Delta, Finish, UsageReport
from metergate.core.passage import Passage
from metergate.core.rows import FinishReason
from metergate.core.usage import TokenClass, Usage
from simulation.luck import Luck, require

# Every word is one of these: one that costs 1 token, one that costs 3 when cut, one of another script.
WORDS = ("sea", "straight", "a", "understand", "的海", "elephant")


class UnreliableBackend:
    """Answers with words, most times."""

    def __init__(self, luck: Luck, backend_id: str) -> None:
        self.backend_id = backend_id
        self._luck = luck
        self.open_generations = 0

    async def generate(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        self.open_generations += 1
        try:
            async for event in self._answer(request):
                yield event
        finally:
            self.open_generations -= 1

    async def embed(self, request: EmbeddingBackendRequest) -> Embeddings:
        luck = self._luck
        self.open_generations += 1
        try:
            await luck.pause(0.4)
            self._fail_perhaps(request.model_id)
            if luck.happens(0.02):
                await asyncio.sleep(30.0)  # longer than anybody waits
            vectors = tuple(array("f", [1.0] * request.dimensions) for _ in request.inputs)
            reported = luck.random.choice((None, 0, 6, 9_999))
            usage = None if reported is None else Usage.of({TokenClass.PROMPT: reported})
            return Embeddings(vectors=vectors, usage_reported=usage)
        finally:
            self.open_generations -= 1

    async def _answer(self, request: BackendRequest) -> AsyncGenerator[BackendEvent, None]:
        luck, text = self._luck, ""
        for number in range(luck.random.randrange(12)):
            await luck.pause(0.4)
            self._fail_perhaps(request.model_id)
            if luck.happens(0.01):
                await asyncio.sleep(30.0)  # longer than anybody waits
            words = " ".join(luck.random.choices(WORDS, k=luck.random.randrange(1, 5)))
            piece = words if number == 0 else luck.random.choice(("", " ")) + words
            text += piece
            yield Delta(content=piece)
        if luck.happens(0.05):
            return  # without a finish reason
        yield Finish(reason=FinishReason.STOP)
        if luck.happens(0.5):
            reported = luck.random.choice((0, count_words(text), 10_000))
            prompt = {TokenClass.PROMPT: luck.random.choice((0, 6, 9_999))}
            yield UsageReport(usage=Usage.of({**prompt, TokenClass.COMPLETION: reported}))

    def _fail_perhaps(self, model_id: str) -> None:
        if self._luck.happens(0.03):
            raise self._luck.random.choice(
                (
                    BackendUnavailable(model_id=model_id, problem="it broke"),
                    BackendRejected(model_id=model_id, problem="it refused"),
                    RuntimeError("a defect of the adapter"),
                )
            )

    async def is_up(self) -> bool:
        return True

    async def close(self) -> None:
        return None


class UnreliablePolicy:
    """Allows most pieces; blocks, fails, hangs, or has a defect. It knows what it allowed of each answer."""

    def __init__(self, luck: Luck) -> None:
        self._luck = luck
        self.allowed: defaultdict[str, str] = defaultdict(str)  # text, by reservation

    async def allows(self, passage: Passage) -> bool:
        luck, reservation_id = self._luck, passage.reservation_id
        before = self.allowed[reservation_id]
        require(before.endswith(passage.before.content), f"{passage} does not follow {before!r}")
        require(bool(before) == bool(passage.before.content), f"{passage} does not say that {before!r} came before")
        await luck.pause(0.2)
        if luck.happens(0.01):
            raise ContentPolicyUnavailable(problem="it broke")
        if luck.happens(0.01):
            await asyncio.sleep(30.0)  # longer than it is waited for
        if luck.happens(0.005):
            raise RuntimeError("a defect of the policy")
        if luck.happens(0.03):
            return False
        self.allowed[reservation_id] += passage.delta.content
        return True

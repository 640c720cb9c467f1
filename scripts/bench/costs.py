"""CPU seconds of the gateway a streamed token and a unary call, beside the pass-through in the same round."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from bench.calls import Answer, Way
from bench.results import Cost

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests at once, and what each asks for."""

    name: str
    unit: str
    bar: float
    at_once: int
    requests: int
    answer: Answer
    is_streamed: bool

    @property
    def units(self) -> int:
        """What the cost is divided by."""
        return self.requests * (self.answer.pieces if self.is_streamed else 1)


LOADS = (
    Load(
        name="streams, saturated (8 at once)",
        unit="token",
        bar=1.0,
        at_once=8,
        requests=8,
        answer=Answer(4000, 0),
        is_streamed=True,
    ),
    Load(
        name="streams, 100 at 50 tokens/s",
        unit="token",
        bar=1.5,
        at_once=100,
        requests=100,
        answer=Answer(250, 20_000),
        is_streamed=True,
    ),
    Load(
        name="unary calls (32 at once)",
        unit="call",
        bar=1.6,
        at_once=32,
        requests=2000,
        answer=Answer(1, 0),
        is_streamed=False,
    ),
)
QUICK_LOADS = tuple(
    Load(
        name=load.name,
        unit=load.unit,
        bar=load.bar,
        at_once=4,
        requests=20,
        answer=Answer(min(load.answer.pieces, 20), load.answer.pause_us // 10),
        is_streamed=load.is_streamed,
    )
    for load in LOADS
)


async def measure_costs(ways: tuple[Way, Way], loads: tuple[Load, ...], rounds: int, progress: Progress) -> list[Cost]:
    """Each load ``rounds`` times, the two ways in turns, after one round that warms up and is not kept."""
    costs = []
    for load in loads:
        gateway_us, pass_through_us, tokens_a_delivery = [], [], []
        for turn in range(rounds + 1):
            progress(f"{load.name}, round {turn} of {rounds}" if turn else f"{load.name}, warming up")
            deliveries = -ways[0].deliveries
            gateway, pass_through = await _cpu_us(ways[0], load), await _cpu_us(ways[1], load)
            deliveries += ways[0].deliveries
            if turn and load.is_streamed:
                tokens_a_delivery.append(load.units / deliveries)
            if turn:
                gateway_us.append(gateway)
                pass_through_us.append(pass_through)
        cost = Cost(
            load=load.name,
            unit=load.unit,
            bar=load.bar,
            gateway_us=gateway_us,
            pass_through_us=pass_through_us,
            tokens_a_delivery=tokens_a_delivery,
        )
        costs.append(cost)
    return costs


async def _cpu_us(way: Way, load: Load) -> float:
    call: Callable[[Answer], Awaitable[object]] = way.stream if load.is_streamed else way.whole
    before = way.served.cpu_seconds()
    requests = iter(range(load.requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(load.at_once):
            group.create_task(_caller(call, load.answer, requests))
    return (way.served.cpu_seconds() - before) / load.units * 1e6


async def _caller(call: Callable[[Answer], Awaitable[object]], answer: Answer, requests: Iterator[int]) -> None:
    for _ in requests:
        await call(answer)

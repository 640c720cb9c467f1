"""Time to first token that the gateway adds at low load: one request at a time, in turns with the pass-through."""

from statistics import quantiles

from bench.calls import Answer, Way
from bench.costs import Progress
from bench.results import Latency

ANSWER = Answer(4, 0)
WARM_UP_REQUESTS = 10


async def measure_latency(ways: tuple[Way, Way], requests: int, progress: Progress) -> Latency:
    """Each way ``requests`` times."""
    progress(f"time to first token, {requests} requests each")
    for _ in range(WARM_UP_REQUESTS):
        for way in ways:
            await way.stream(ANSWER)
    pairs = [(await ways[0].stream(ANSWER), await ways[1].stream(ANSWER)) for _ in range(requests)]
    gateway, pass_through = (quantiles(seconds, n=100, method="inclusive") for seconds in zip(*pairs, strict=True))
    return Latency(
        requests=requests,
        gateway_p50_ms=gateway[49] * 1000,
        gateway_p99_ms=gateway[98] * 1000,
        pass_through_p50_ms=pass_through[49] * 1000,
        pass_through_p99_ms=pass_through[98] * 1000,
    )

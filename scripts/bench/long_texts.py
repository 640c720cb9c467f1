"""What a text that is hard to count does to other streams: how late the event loop wakes them meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from statistics import quantiles

from bench.costs import Progress
from bench.counting import ENGLISH, no_prompt, text_of, vocabularies
from bench.results import LongText
from metergate.core.inference import Delta
from metergate.metering.answer import AnswerCounter
from metergate.metering.limits import Limits
from metergate.tokenizers.vocabulary import Vocabulary, VocabularyTokenizer

# Another stream's wake-ups: a thousand a second, as twenty streams of fifty tokens a second have.
TICK_SECONDS = 0.001
# An answer is given up after so long: without cuts, one of 200,000 letters would take hours.
ANSWER_SECONDS_MAX = 4.0
RUNS = {"a": "a", "啊": "啊", "space": " "}
IN_LOOP_CHARACTERS_MAX = Limits().counted_in_loop_characters_max
DELIVERY_CHARACTERS = Limits().delivery_characters_max


async def measure_long_texts(characters: int, prompt_bytes: int, progress: Progress) -> list[LongText]:
    """Each vocabulary with each run and with a long prompt. Runs are also counted as they were before they were cut."""
    measured = []
    for name, vocabulary, _ in vocabularies():
        for label, character in RUNS.items():
            answer = character * characters
            for variant, what in ((vocabulary, ""), (replace(vocabulary, runs=None), ", not cut")):
                progress(f"long texts, {name}, {label}{what}")
                text = f"{characters:,} x {label}, one by one{what}"
                measured.append(await _measured(name, text, _count(variant, answer, 1)))
            text = f"{characters:,} x {label}, {DELIVERY_CHARACTERS:,} at once"
            measured.append(await _measured(name, text, _count(vocabulary, answer, DELIVERY_CHARACTERS)))
        progress(f"long texts, {name}, prompt")
        prompt = text_of(ENGLISH, " ", prompt_bytes)
        counting = _count_prompt(vocabulary, prompt)
        measured.append(await _measured(name, f"a prompt of {prompt_bytes:,} bytes", counting))
    return measured


async def _count(vocabulary: Vocabulary, answer: str, characters: int) -> int:
    """Count an answer as a run does, in deliveries of so many characters; how many there were in the time there is."""
    counter = AnswerCounter(VocabularyTokenizer(vocabulary, no_prompt))
    ends = time.perf_counter() + ANSWER_SECONDS_MAX
    deliveries = 0
    for start in range(0, len(answer), characters):
        delta = Delta(content=answer[start : start + characters])
        after = counter.copy()
        if after.encoded_characters(delta) > IN_LOOP_CHARACTERS_MAX:
            await asyncio.to_thread(after.add, delta)
        else:
            after.add(delta)
        counter = after
        deliveries += 1
        await asyncio.sleep(0)  # as a capture would give the others their turn
        if time.perf_counter() > ends:
            break
    return deliveries


async def _count_prompt(vocabulary: Vocabulary, prompt: str) -> int:
    await asyncio.to_thread(vocabulary.count_rendered, prompt)
    return 1


async def _measured(vocabulary: str, text: str, counting: Awaitable[int]) -> LongText:
    late: list[float] = []
    ticking = asyncio.create_task(_tick(late))
    await asyncio.sleep(TICK_SECONDS)
    began = time.perf_counter()
    deliveries = await counting
    seconds = time.perf_counter() - began
    await asyncio.sleep(TICK_SECONDS * 2)
    ticking.cancel()
    return LongText(
        vocabulary=vocabulary,
        text=text,
        deliveries=deliveries,
        delivery_us=seconds / deliveries * 1e6,
        late_p99_ms=quantiles(late, n=100, method="inclusive")[98] * 1e3 if len(late) > 1 else late[0] * 1e3,
        late_max_ms=max(late) * 1e3,
    )


async def _tick(late: list[float]) -> None:
    for due in _dues():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append(max(0.0, time.perf_counter() - due))


def _dues() -> Iterator[float]:
    while True:
        yield time.perf_counter() + TICK_SECONDS

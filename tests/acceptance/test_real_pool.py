"""The real model server in a pool: many streams at once, counted to the token; and one that is killed in the middle."""

import asyncio
from pathlib import Path

from app_client import App, cause, finish, inference, tokens
from gateway_process import GatewayProcess, cost, open_wallets, openai_backend, smollm2, verify, write_config
from llama_process import LlamaProcess, llama_process

from metergate.v1 import chat_pb2

AT_ONCE = 8
TOKENS_MAX = 24

PROMPTS = (
    "In one sentence: what is the sea?",
    "请用一句话介绍大海。",
    "Write a haiku about credits.",
    "列出三种水果。",
    "What is 2 + 2? 😀",
    "Écris une phrase sur la mer.",
    "Count from one to ten.",
    "Say hello in Japanese.",
)

# The likeliest token always, so that a run of the test is like the last.
GREEDY = chat_pb2.Sampling(temperature=0.0, seed=1)


async def test_eight_streams_at_once_on_the_real_server_are_counted_as_it_counts_them(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    with llama_process("--parallel", str(AT_ONCE), "--context", "256") as server:
        table = f'{openai_backend(f"{server.url}/v1")}\nrequests_max = {AT_ONCE}\nhealth_path = "/health"'
        write_config(tmp_path, table)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                streams = [
                    app.stream(inference(f"stream-{index}", prompt, max_completion_tokens=TOKENS_MAX, sampling=GREEDY))
                    for index, prompt in enumerate(PROMPTS)
                ]
                answers = [await stream.ended() for stream in streams]
            charges = gateway.books.charges()
        verify(tmp_path)
    assert len(charges) == AT_ONCE
    for answer in answers:
        receipt = answer.receipted
        counted, reported = tokens(receipt.usage_counted), tokens(receipt.usage_reported)
        assert cause(receipt) == "FINISHED"
        # What it served from its cache of earlier prompts is told apart, and adds up.
        prompt_tokens = counted.get("PROMPT", 0) + counted.get("CACHED_PROMPT", 0)
        assert prompt_tokens == reported.get("PROMPT", 0) + reported.get("CACHED_PROMPT", 0)
        assert prompt_tokens == answer.admitted.prompt_tokens
        assert counted["COMPLETION"] == smollm2().count_text(answer.text)
        undelivered = reported["COMPLETION"] - counted["COMPLETION"]
        # The end-of-turn token; or the bytes of a character that max_completion_tokens cut, at most three tokens.
        assert undelivered == 1 if finish(receipt) == "STOP" else 0 <= undelivered <= 3
        assert receipt.charged_microcredits == cost(prompt_tokens, answer.text)


async def test_requests_that_follow_each_other_on_the_real_server_all_get_their_answers(tmp_path: Path) -> None:
    """It closes each connection right after a stream, though it said to keep it: the next in line meets that."""
    names = [f"in-line-{index}" for index in range(16)]
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    with llama_process("--parallel", "1") as server:
        line = f"requests_max = 1\nqueue_max = {len(names)}\nqueue_seconds_max = 60.0"
        write_config(tmp_path, f"{openai_backend(f'{server.url}/v1')}\n{line}")
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                streams = [app.stream(inference(name, "Hi", max_completion_tokens=2)) for name in names]
                answers = [await stream.ended() for stream in streams]
            charges = gateway.books.charges()
            attempts = {tuple(gateway.books.attempts(name)) for name in names}
        verify(tmp_path)
    assert [answer.refusal for answer in answers] == [None] * len(names)
    assert charges.keys() == set(names)
    assert attempts <= {("only",), ("only", "only")}


async def test_a_real_server_that_is_killed_in_the_middle_is_charged_what_arrived_and_serves_again_once_it_is_back(
    tmp_path: Path, backend_port: int
) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    arguments = ("--parallel", "1", "--port", str(backend_port))
    with llama_process(*arguments) as first:
        write_config(tmp_path, openai_backend(f"{first.url}/v1"))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                running = app.stream(inference("killed", "Tell me a very long story.", max_completion_tokens=1_500))
                await running.until_characters(20)
                await asyncio.to_thread(first.kill)
                broken = await running.ended()
                away = await app.stream(inference("away")).ended()
                again = await asyncio.to_thread(LlamaProcess, *arguments)
                try:
                    # The gateway has found it down, and up again, or the request itself finds it.
                    answer = await app.stream(inference("again", max_completion_tokens=8)).ended()
                finally:
                    await asyncio.to_thread(again.stop)
            charges = gateway.books.charges()
        verify(tmp_path)
    assert broken.refused.reason == away.refused.reason == "BACKEND_UNAVAILABLE"
    assert cause(broken.receipted) == "BACKEND_ERROR"
    assert broken.receipted.charged_microcredits == cost(broken.admitted.prompt_tokens, broken.text)
    assert cause(answer.receipted) == "FINISHED"
    assert charges.keys() == {"killed", "again"}

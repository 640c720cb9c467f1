"""SIGHUP: models, backends and prices are replaced, whatever runs goes on as it began, and nothing is half replaced."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from app_client import App, inference
from gateway_process import COMPLETION_PRICE, GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

DEARER = """
[[rate_cards]]
id = "card-2"
model = "smollm2"
effective_time = 2026-02-01T00:00:00Z
microcredits_per_million_tokens = {{ prompt = 0, completion = {price} }}
"""


def rewrite(folder: Path, old: str, new: str) -> None:
    file = folder / "metergate.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


async def reload(gateway: GatewayProcess, said: str) -> str:
    """Tell the gateway to reload; return the lines that it then says, the one with ``said`` being the last."""
    before = len(gateway.lines())
    gateway.signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while not any(said in line for line in gateway.lines()[before:]):  # noqa: ASYNC110 - another process says it
            await asyncio.sleep(0.02)
    return "".join(gateway.lines()[before:])


async def test_a_stream_goes_on_at_its_backend_and_price_while_new_requests_see_the_new_ones(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with (
        speaking(WordModel(words=40, hold_after=20)) as old,
        speaking(WordModel(words=10)) as new,
    ):
        write_config(tmp_path, openai_backend(old.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                running = app.stream(inference("running"))
                await running.until_characters(len(old.text(20)))
                rewrite(tmp_path, old.url, new.url)
                with (tmp_path / "metergate.toml").open("a") as file:
                    file.write(DEARER.format(price=9 * COMPLETION_PRICE))
                await reload(gateway, "reloaded: serving smollm2")
                later = app.stream(inference("later"))
                await later.ended()
                old.go_on.set()
                await running.ended()
        verify(tmp_path)
    assert running.text == old.text(40)
    assert running.receipted.charged_microcredits == cost(running.admitted.prompt_tokens, running.text)
    assert later.text == new.text(10)
    prompt_cost = cost(later.admitted.prompt_tokens, "")
    at_old_price = cost(later.admitted.prompt_tokens, later.text)
    assert later.receipted.charged_microcredits > 5 * (at_old_price - prompt_cost)
    assert (old.requests, new.requests) == (1, 1)


async def test_a_model_that_is_removed_is_not_found_by_new_requests_and_finishes_what_runs(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=40, hold_after=20)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                running = app.stream(inference("running"))
                await running.until_characters(len(model.text(20)))
                rewrite(tmp_path, "[models.smollm2]", "[models.another]")
                rewrite(tmp_path, 'id = "card-1"\nmodel = "smollm2"', 'id = "card-2"\nmodel = "another"')
                await reload(gateway, "reloaded: serving another")
                refused = (await app.stream(inference("late")).ended()).refused
                model.go_on.set()
                await running.ended()
        verify(tmp_path)
    assert refused.reason == "MODEL_NOT_FOUND"
    assert running.text == model.text(40)
    assert running.receipted.charged_microcredits == cost(running.admitted.prompt_tokens, running.text)


async def test_a_retry_after_its_model_was_removed_gets_its_recorded_receipt(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=10)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                first = await app.stream(inference("first")).ended()
                rewrite(tmp_path, "[models.smollm2]", "[models.another]")
                rewrite(tmp_path, 'id = "card-1"\nmodel = "smollm2"', 'id = "card-2"\nmodel = "another"')
                await reload(gateway, "reloaded: serving another")
                again = await app.stream(inference("first")).ended()
                whole = await app.complete(inference("first"))
                conflict = (await app.stream(inference("first", "Tell me of the land.")).ended()).refused
                refused = (await app.stream(inference("second")).ended()).refused
        verify(tmp_path)
    assert (again.text, whole.message.content_parts[0].text) == (model.text(10), model.text(10))
    assert again.receipted == whole.receipt
    assert again.receipted.replayed
    assert again.receipted.charge == first.receipted.charge
    assert again.receipted.charged_microcredits == first.receipted.charged_microcredits
    assert (conflict.reason, refused.reason) == ("REQUEST_ID_CONFLICT", "MODEL_NOT_FOUND")
    assert model.requests == 1


def unknown_key(folder: Path) -> None:
    rewrite(folder, "[limits]", "[limits]\nslice_token = 3")


def no_toml(folder: Path) -> None:
    rewrite(folder, "[limits]", "[limits")


def other_prices(folder: Path) -> None:
    rewrite(folder, f"completion = {COMPLETION_PRICE}", "completion = 1")


def other_listener(folder: Path) -> None:
    rewrite(folder, 'address = "127.0.0.1:0"\n\n[store]\npath = "ledger.db"', '[store]\npath = "other.db"')


def other_limit(folder: Path) -> None:
    rewrite(folder, "[limits]", "[limits]\nslice_tokens = 3")


def broken_tokenizer(folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"GGUF but no more")
    text = (folder / "metergate.toml").read_text()
    path = text.partition('kind = "gguf", path = "')[2].partition('"')[0]
    rewrite(folder, path, "broken.gguf")


def no_backend(folder: Path) -> None:
    rewrite(folder, 'backends = ["only"]', 'backends = ["none"]')


BAD: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (unknown_key, ("limits.slice_token: is not a known key",)),
    (no_toml, ("it is not TOML",)),
    (other_prices, ("The id card-1 was used for another rate card",)),
    (other_listener, ("listener.address: is only read at start", "store.path: is only read at start")),
    (other_limit, ("limits.slice_tokens: is only read at start",)),
    (broken_tokenizer, ("broken.gguf cannot be used",)),
    (no_backend, ("models.smollm2.backends: there is no backend 'none'",)),
]


async def test_a_bad_reload_is_refused_as_a_whole_with_its_reason_and_the_next_good_one_is_not(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=5)) as model:
        file = write_config(tmp_path, openai_backend(model.url))
        good = file.read_text()
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                for spoil, reasons in BAD:
                    spoil(tmp_path)
                    # What else the file would change is not changed either.
                    file.write_text(file.read_text().replace("context_tokens = 2048", "context_tokens = 9"))
                    said = await reload(gateway, "not reloaded, all stays as it was")
                    assert [reason for reason in reasons if reason not in said] == []
                    assert "Traceback" not in said
                    answer = await app.stream(inference(spoil.__name__)).ended()
                    assert answer.text == model.text(5), spoil.__name__
                    file.write_text(good)
                await reload(gateway, "reloaded: serving smollm2")
        verify(tmp_path)


async def test_reloads_in_a_row_lose_no_stream(tmp_path: Path) -> None:
    times = 5
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 10_000_000})
    async with speaking(WordModel(words=400, interval_seconds=0.005)) as model:
        file = write_config(tmp_path, openai_backend(model.url))
        first = file.read_text()
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                streams = []
                for index in range(times):
                    streams.append(app.stream(inference(f"stream-{index}")))
                    await streams[-1].until_characters(1)
                    # Another limit makes it another backend, with connections of its own.
                    file.write_text(first.replace("[backends.only]", f"[backends.only]\nrequests_max = {10 + index}"))
                    await reload(gateway, "reloaded: serving smollm2")
                for stream in streams:
                    await stream.ended()
        verify(tmp_path)
    assert [stream.text for stream in streams] == [model.text(400)] * times

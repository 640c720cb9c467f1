"""A whole gateway before a model that its backend counts: charged by report, by estimate, and after a crash."""

import asyncio
import json
from pathlib import Path

from app_client import App, inference
from gateway_process import (
    COMPLETION_PRICE,
    PROMPT_PRICE,
    GatewayProcess,
    metergate,
    open_wallets,
    openai_backend,
    verify,
    write_config,
)
from word_model import WordModel, speaking

from metergate.core.rating import round_up
from metergate.core.text_bounds import TextSize


def write_backend_config(folder: Path, url: str) -> None:
    path = write_config(folder, openai_backend(url), counting="BACKEND")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("tokenizer =")))


def price(prompt_tokens: int, completion_tokens: int) -> int:
    return round_up(prompt_tokens * PROMPT_PRICE + completion_tokens * COMPLETION_PRICE)


async def test_the_report_the_estimate_and_a_kill_are_each_charged_as_documented(tmp_path: Path) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 100_000_000})

    def report(words: int) -> dict[str, int]:
        return {"prompt_tokens": 11, "completion_tokens": words}

    async with speaking(WordModel(words=40, reports_usage=report)) as model:
        write_backend_config(tmp_path, model.url)
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                answer = await app.stream(inference("reported")).ended()
                assert answer.receipted.charged_microcredits == price(11, 40)
                model.reports_usage = None
                answer = await app.stream(inference("unreported")).ended()
                silent = answer.receipted.charged_microcredits
                assert silent < price(answer.admitted.prompt_tokens, len(answer.text.encode()))
                prompt = silent - price(0, TextSize.of(answer.text).estimated_tokens())
                model.words, model.hold_after = None, 20
                answer = app.stream(inference("killed"))
                await answer.until_characters(len(model.text(20)))
                await asyncio.to_thread(gateway.kill)
                await answer.ended()
            await asyncio.to_thread(gateway.start)
            charged_microcredits, close_cause = gateway.books.charges()["killed"]
            assert close_cause == "CRASH"
            assert charged_microcredits == prompt + price(0, TextSize.of(model.text(20)).estimated_tokens())
            shown = await asyncio.to_thread(metergate, tmp_path, "usage", "mismatch", "--json")
            [row] = json.loads(shown.stdout)
            assert (row["counting_source"], row["charges"], row["unreported_charges"]) == ("BACKEND", 2, 1)
            assert row["counted_tokens"] == row["reported_tokens"] == 51
        verify(tmp_path)

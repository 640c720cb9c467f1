"""The tables of logs and traces."""

import sys
from pathlib import Path

import pytest

from metergate.config import Logs, Traces, load_config
from metergate.core.errors import ConfigInvalid

GOOD = """
[store]
path = "ledger.db"

[backends.llama]
kind = "openai"
url = "http://127.0.0.1:8080/v1"

[models.smollm2]
provider = "huggingface"
context_tokens = 2048
backends = ["llama"]
counting = "TOKENIZER"
tokenizer = { kind = "gguf", path = "model.gguf" }

[[rate_cards]]
id = "card-1"
model = "smollm2"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = { prompt = 500_000, completion = 2_000_000 }
"""

TRACES = '[traces]\nendpoint = "http://127.0.0.1:4318"\n'


def write(folder: Path, more: str) -> Path:
    (folder / "model.gguf").touch()
    file = folder / "metergate.toml"
    file.write_text(GOOD + more)
    return file


def test_by_default_a_request_leaves_a_line_and_no_span(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""))
    assert (config.logs, config.traces) == (Logs(format="auto", level="info"), Traces(endpoint=None, sample_ratio=1.0))


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('[logs]\nlevel = "trace"', "logs.level"),
        ('[logs]\nformat = "xml"', "logs.format"),
        ("[logs]\nlevel = 10", "logs.level"),
        ('[traces]\nendpoint = "127.0.0.1:4318"', "traces.endpoint"),
        ("[traces]\nsample_ratio = 1.5", "traces.sample_ratio"),
        ("[traces]\nsample_ratio = nan", "traces.sample_ratio"),
        ("[traces]\nratio = 0.5", "traces.ratio"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, more: str, key: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"metergate.toml: {key}: "):
        load_config(write(tmp_path, more))


def test_traces_without_opentelemetry_are_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, TRACES)
    assert load_config(file).traces.endpoint == "http://127.0.0.1:4318"
    for module in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ConfigInvalid, match=r"traces.endpoint: needs OpenTelemetry: pip install 'metergate\[otel\]'"):
        load_config(file)

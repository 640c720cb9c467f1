"""Engines' backends and models counted by token ids: what goes together, and what is refused with its cure."""

from pathlib import Path

import pytest

from metergate.config import EngineBackendTable, catalog_of, load_config
from metergate.config import problems as found
from metergate.core.catalog import ReasoningForm
from metergate.core.errors import ConfigInvalid
from metergate.core.usage import CountingSource

GOOD = """
[store]
path = "ledger.db"

[backends.engine]
kind = "vllm"
address = "127.0.0.1:50071"

[models.smollm2]
provider = "huggingface"
context_tokens = 2048
backends = ["engine"]
counting = "TOKEN_IDS"
reasoning = "think"
tokenizer = { kind = "gguf", path = "model.gguf" }

[[rate_cards]]
id = "card-1"
model = "smollm2"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = { prompt = 500_000, completion = 2_000_000 }
"""

TEXT_BACKEND = """
[backends.texts]
kind = "openai"
url = "http://127.0.0.1:8080/v1"
"""


def write(folder: Path, text: str) -> Path:
    (folder / "model.gguf").touch()
    path = folder / "metergate.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_engine_and_its_model_are_read(tmp_path: Path, kind: str) -> None:
    config = load_config(write(tmp_path, GOOD.replace('"vllm"', f'"{kind}"')))
    table = config.backends["engine"]
    assert isinstance(table, EngineBackendTable)
    assert (table.kind, table.address, table.tls) == (kind, "127.0.0.1:50071", False)
    model = catalog_of(config).get("smollm2")
    assert (model.counting_source, model.reasoning) == (CountingSource.TOKEN_IDS, ReasoningForm.THINK)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"TOKEN_IDS"', '"TOKENIZER"', "models.smollm2.counting: 'engine' is an engine"),
        ('"TOKEN_IDS"', '"TOKENIZER"', "models.smollm2.reasoning: is for counting"),
        ('["engine"]', '["engine", "texts"]', "models.smollm2.backends: 'texts' sends texts"),
        ('"think"', '"<think>"', "models.smollm2.reasoning"),
        (":50071", "", "backends.engine.address"),
        (':50071"', ':50071"\nca_path = "x"', "backends.engine.ca_path: is for TLS"),
        (':50071"', ':50071"\nport = 3', "backends.engine.port: is not a known key"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        load_config(write(tmp_path, GOOD.replace(old, new) + TEXT_BACKEND))
    assert problem in str(refusal.value)


def test_a_key_would_not_cross_the_network_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "secret")
    text = GOOD.replace('"127.0.0.1:50071"', '"engine.example:50071"\napi_key_env = "ENGINE_KEY"')
    with pytest.raises(ConfigInvalid, match=r"backends\.engine\.api_key_env.*add tls"):
        load_config(write(tmp_path, text))


def test_without_the_stubs_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "find_spec", lambda module: None if module == "smg_grpc_proto" else object())
    with pytest.raises(ConfigInvalid, match=r"backends\.engine\.kind: .*pip install 'metergate\[engines\]'"):
        load_config(write(tmp_path, GOOD))

"""Variables of the environment stand for keys: they win over the file, and what is wrong names the variable."""

import re
from pathlib import Path

import pytest

from metergate.config import Config, OpenAIBackendTable, load_config, settings_in_effect
from metergate.core.errors import ConfigInvalid

FILE = """
[store]
path = "ledger.db"

[limits]
slice_tokens = 16

[backends.llama-1]
kind = "openai"
url = "http://127.0.0.1:8080/v1"

[models."smollm2.135m"]
provider = "huggingface"
context_tokens = 2048
backends = ["llama-1"]
counting = "TOKENIZER"
tokenizer = { kind = "gguf", path = "model.gguf" }

[[rate_cards]]
id = "card-1"
model = "smollm2.135m"
effective_time = 2026-01-01T00:00:00Z
microcredits_per_million_tokens = { prompt = 500_000, completion = 2_000_000 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "metergate.toml").write_text(FILE)
    return tmp_path / "metergate.toml"


def load(file: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Config:
    for name, value in variables.items():
        monkeypatch.setenv(f"METERGATE_{name}", value)
    return load_config(file)


def refused(file: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load(file, monkeypatch, **variables)
    return str(caught.value)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(file, monkeypatch, LISTENER__ADDRESS="127.0.0.1:7", LIMITS__SLICE_TOKENS="32")
    assert config.listener.address == "127.0.0.1:7"
    assert config.limits.slice_tokens == 32
    assert config.limits.requests_max == 1_000
    monkeypatch.delenv("METERGATE_LIMITS__SLICE_TOKENS")
    assert load_config(file).limits.slice_tokens == 16


def test_numbers_truths_lists_and_tables_are_written_as_in_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(
        file,
        monkeypatch,
        LIMITS__DRAIN_SECONDS_MAX="2.5",
        BACKENDS__LLAMA_1__STREAM="false",
        BACKENDS__SECOND='{ kind = "grpc", address = "127.0.0.1:9" }',
        MODELS__SMOLLM2_135M__BACKENDS='["second", "llama-1"]',
        RATE_CARDS="[{ id = 'card-9', model = 'smollm2.135m', effective_time = 2026-01-01T00:00:00Z,"
        " microcredits_per_million_tokens = { prompt = 1, completion = 2 } }]",
    )
    llama = config.backends["llama-1"]
    assert isinstance(llama, OpenAIBackendTable)
    assert (config.limits.drain_seconds_max, llama.stream) == (2.5, False)
    assert config.models["smollm2.135m"].backends == ["second", "llama-1"]
    assert [card.rate_card_id for card in config.rate_cards] == ["card-9"]


@pytest.mark.parametrize("name", ["MODELS__SMOLLM2_135M__CONTEXT_TOKENS", "models__smollm2.135m__context_tokens"])
def test_an_id_is_named_as_a_shell_can_or_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert load(file, monkeypatch, **{name: "4096"}).models["smollm2.135m"].context_tokens == 4096


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LIMITS__SLICE_TOKENS", "many", "limits.slice_tokens: must be a whole number; it is a text"),
        ("LIMITS__SLICE_TOKENS", "0", "limits.slice_tokens: must be at least 1"),
        ("LIMITS__SLICE_TOKENS", "", "limits.slice_tokens: must be a whole number; it is a text"),
        ("LIMITS__DRAIN_SECONDS_MAX", "nan", "limits.drain_seconds_max: "),
        ("LISTENER__ADDRESS", "50051", "listener.address: must be HOST:PORT"),
        ("LIMITS", "7", "limits: "),
        ("RATE_CARDS", "[{]", "rate_cards: must be a list"),
        ("MODELS__SMOLLM2_135M__BACKENDS", '["lama"]', "models.smollm2.135m.backends: there is no backend 'lama'"),
        ("MODELS__SMOLLM2_135M__BACKENDS", "llama-1", "models.smollm2.135m.backends: must be a list"),
        ("MODELS__OTHER__PROVIDER", "x", "models.other.context_tokens: is missing"),
        ("LISTNER__ADDRESS", "127.0.0.1:7", "stands for no key of the configuration"),
        ("LISTENER__ADRESS", "127.0.0.1:7", "stands for no key of the configuration"),
        ("LIMITS__SLICE_TOKENS__MAX", "7", "stands for no key of the configuration"),
        ("SLICE_TOKENS", "7", "stands for no key of the configuration"),
        ("", "7", "stands for no key of the configuration"),
    ],
)
def test_a_wrong_variable_is_named_with_its_key_and_the_reason(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    message = refused(file, monkeypatch, **{name: value})
    prefix = rf"environment variable METERGATE_{name}: " if "is missing" not in line else ".*"
    assert re.search(f"(?m)^{prefix}{re.escape(line)}", message), message


def test_the_file_is_named_where_the_file_is_wrong(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(FILE.replace("slice_tokens = 16", "slice_tokens = 0"))
    message = refused(file, monkeypatch, LISTENER__ADDRESS="1")
    assert f"{file}: limits.slice_tokens: " in message
    assert "environment variable METERGATE_LISTENER__ADDRESS: listener.address: " in message


def test_a_wrong_value_of_the_file_is_mended_by_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(FILE.replace("slice_tokens = 16", "slice_tokens = 0"))
    assert load(file, monkeypatch, LIMITS__SLICE_TOKENS="1").limits.slice_tokens == 1


def test_a_backends_key_may_be_in_a_variable_that_begins_as_ours_do_and_is_never_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERGATE_LLAMA_KEY", "very-secret")
    config = load(file, monkeypatch, BACKENDS__LLAMA_1__API_KEY_ENV="METERGATE_LLAMA_KEY")
    assert config.api_keys == {"llama-1": "very-secret"}
    assert "very-secret" not in repr(settings_in_effect(file))
    assert "very-secret" not in refused(file, monkeypatch, BACKENDS__LLAMA_1__API_KEY_ENV="OTHER_KEY")


def test_every_value_in_effect_is_shown_with_where_it_came_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERGATE_MODELS__SMOLLM2_135M__TOKENIZER", '{ prompt_rule = "openai" }')
    monkeypatch.setenv("METERGATE_LIMITS__SLICE_TOKENS", "32")
    shown = {setting.key: (setting.value, setting.source) for setting in settings_in_effect(file)}
    assert shown["limits", "slice_tokens"] == (32, "METERGATE_LIMITS__SLICE_TOKENS")
    assert shown["store", "path"] == ("ledger.db", "file")
    assert shown["listener", "address"] == ("127.0.0.1:50051", "default")
    tokenizer = ("models", "smollm2.135m", "tokenizer")
    assert shown[*tokenizer, "prompt_rule"] == ("openai", "METERGATE_MODELS__SMOLLM2_135M__TOKENIZER")
    assert shown[*tokenizer, "path"] == ("model.gguf", "file")
    prices = ("rate_cards", 0, "microcredits_per_million_tokens")
    assert shown[*prices, "prompt"] == (500_000, "file")
    assert shown[*prices, "reasoning"] == (None, "default")


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"between_tokens_seconds_max": "700"}, "700 is above limits.request_seconds_max, which is 600"),
        ({"first_token_seconds_max": "9", "request_seconds_max": "8"}, "9 is above limits.request_seconds_max"),
        ({"drain_seconds_max": "601"}, "601 is above limits.request_seconds_max"),
        ({"delivery_characters_max": "9000"}, "9000 is above limits.read_ahead_characters_max, which is 8192"),
        ({"slice_tokens": "2048"}, "2048 is not below models.smollm2.135m.context_tokens, 2048"),
        ({"calls_max": "1000"}, "must be above requests_max, which is 1000"),
    ],
)
def test_limits_that_contradict_are_refused_with_the_cause_and_the_cure(
    file: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], line: str
) -> None:
    message = refused(file, monkeypatch, **{f"LIMITS__{name.upper()}": value for name, value in limits.items()})
    name = next(iter(limits))
    assert f"environment variable METERGATE_LIMITS__{name.upper()}: limits.{name}: {line}" in message


def test_a_short_request_time_needs_no_other_limit_to_be_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(file, monkeypatch, LIMITS__REQUEST_SECONDS_MAX="5").limits.request_seconds_max == 5

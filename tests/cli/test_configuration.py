"""``metergate config``: everything that start-up would refuse is named at once; what is in effect can be used again."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, write_config

Run = Callable[..., tuple[int, str, str]]

BACKEND = 'kind = "openai"\nurl = "http://127.0.0.1:9/v1"\napi_key_env = "LLAMA_KEY"'
SECRET = "very-secret"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_KEY", SECRET)
    write_config(tmp_path, BACKEND)
    return tmp_path


def test_a_good_configuration_passes_before_and_while_it_is_served_and_nothing_is_written(
    folder: Path, run: Run
) -> None:
    assert run("config", "check") == (0, "metergate.toml: nothing is wrong.\n", "")
    assert [path.name for path in folder.iterdir()] == ["metergate.toml"]
    with GatewayProcess(folder):
        assert run("config", "check")[0] == 0


def test_tokenizers_certificates_store_and_prices_are_checked_and_all_problems_named(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GatewayProcess(folder):
        pass
    (folder / "broken.gguf").write_bytes(b"GGUF but no more")
    (folder / "listener.crt").write_text("no certificate")
    (folder / "listener.key").write_text("no key")
    (folder / "listener.key").chmod(0o600)
    monkeypatch.setenv("METERGATE_MODELS__SMOLLM2__TOKENIZER__PATH", "broken.gguf")
    monkeypatch.setenv("METERGATE_LISTENER__TLS", '{ certificate_path = "listener.crt", key_path = "listener.key" }')
    file = folder / "metergate.toml"
    file.write_text(file.read_text().replace("prompt = ", "prompt = 1"))
    code, _, err = run("config", "check")
    assert code == 2
    tokenizer, certificate, card = err.splitlines()
    assert "broken.gguf cannot be used" in tokenizer
    assert "listener.crt" in certificate
    assert "The rate card card-1 was served with other prices or times: change it back, and add" in card


@pytest.mark.parametrize(("path", "line"), [("missing/x.db", "there is no directory"), (".", "it is not a file")])
@pytest.mark.usefixtures("folder")
def test_a_store_that_cannot_be_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, path: str, line: str) -> None:
    monkeypatch.setenv("METERGATE_STORE__PATH", path)
    code, _, err = run("config", "check")
    assert code == 2
    assert line in err


def test_what_is_shown_as_toml_is_a_configuration_with_the_same_values(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERGATE_LIMITS__SLICE_TOKENS", "32")
    code, shown, err = run("config", "show")
    assert code == 0, err
    assert "slice_tokens = 32 # METERGATE_LIMITS__SLICE_TOKENS\n" in shown
    assert 'api_key_env = "LLAMA_KEY" # file\n' in shown
    assert "# cached_prompt is not set (default)\n" in shown
    assert SECRET not in shown + err
    monkeypatch.delenv("METERGATE_LIMITS__SLICE_TOKENS")
    (folder / "again.toml").write_text(shown)
    _, again, _ = run("config", "show", "--config", "again.toml")
    assert tomllib.loads(again) == tomllib.loads(shown)


@pytest.mark.usefixtures("folder")
def test_what_is_shown_as_json_has_each_value_with_its_source(run: Run) -> None:
    shown = json.loads(run("config", "show", "--format", "json")[1])
    assert shown["listener"]["address"] == {"value": "127.0.0.1:0", "source": "file"}
    assert shown["logs"]["level"] == {"value": "info", "source": "default"}
    assert shown["rate_cards"]["0"]["id"] == {"value": "card-1", "source": "file"}


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_wrong_file_is_refused_with_every_problem(folder: Path, run: Run, verb: str) -> None:
    file = folder / "metergate.toml"
    file.write_text(file.read_text().replace("[limits]", "[limits]\nslice_token = 3\nreplay_seconds = -1"))
    code, _, err = run("config", verb)
    assert code == 2
    assert "limits.slice_token: is not a known key" in err
    assert "limits.replay_seconds: must be above 0" in err
    assert "Traceback" not in err

"""Every wrong configuration is refused before anything starts, with the file, the key and the reason."""

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metergate import offerings
from metergate.config import Config, GrpcBackendTable, Limits, OpenAIBackendTable, catalog_of, load_config
from metergate.core.catalog import ModelTask
from metergate.core.credits import AMOUNT_MICROCREDITS_MAX
from metergate.core.errors import ConfigInvalid
from metergate.core.parameters import ALL_PARAMETERS, Parameter
from metergate.core.rating import rate_ceil
from metergate.core.usage import TokenClass, Usage
from metergate.metering import limits as metering
from metergate.offerings import Parts

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

SECOND_CARD = """
[[rate_cards]]
id = "card-2"
model = "smollm2"
effective_time = 2026-02-01T00:00:00+08:00
microcredits_per_million_tokens = { prompt = 1, completion = 2, cached_prompt = 0, reasoning = 3 }
"""


def write(folder: Path, text: str) -> Path:
    (folder / "model.gguf").touch()
    file = folder / "metergate.toml"
    file.write_text(text)
    return file


def load(folder: Path, text: str) -> Config:
    return load_config(write(folder, text))


def problems(folder: Path, text: str) -> dict[str, str]:
    """Each problem's reason by key; the whole message names the file too."""
    file = write(folder, text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(file)
    assert all(line.startswith(f"{file}: ") for line in str(caught.value).splitlines())
    return {problem.key: problem.description for problem in caught.value.problems}


def test_a_good_file_loads_with_paths_relative_to_itself_and_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.store_path == tmp_path / "ledger.db"
    assert config.resolve("model.gguf") == tmp_path / "model.gguf"
    assert config.listener.address == "127.0.0.1:50051"
    assert config.limits == Limits()
    assert config.models["smollm2"].backends == ["llama"]


def test_the_catalog_has_the_models_with_their_cards_in_order_of_effect(tmp_path: Path) -> None:
    early = GOOD.partition("[[rate_cards]]")
    config = load(tmp_path, early[0] + SECOND_CARD + early[1] + early[2])
    model = catalog_of(config).get("smollm2")
    assert model.display_name == "smollm2"
    assert model.backend_ids == ("llama",)
    assert [card.rate_card_id for card in model.rate_cards] == ["card-1", "card-2"]
    local_midnight = datetime(2026, 1, 31, 16, tzinfo=UTC)
    assert model.rate_cards[1].effective_time_us == int(local_midnight.timestamp()) * 1_000_000


def test_a_cached_prompt_costs_as_a_prompt_and_reasoning_as_a_completion_unless_priced(tmp_path: Path) -> None:
    default, priced = load(tmp_path, GOOD + SECOND_CARD).rate_cards
    assert dict(default.prices) == {
        TokenClass.PROMPT: 500_000,
        TokenClass.CACHED_PROMPT: 500_000,
        TokenClass.COMPLETION: 2_000_000,
        TokenClass.REASONING: 2_000_000,
    }
    assert priced.price(TokenClass.CACHED_PROMPT) == 0
    assert priced.price(TokenClass.REASONING) == 3


def test_the_highest_price_of_the_largest_context_stays_within_an_amount(tmp_path: Path) -> None:
    text = GOOD.replace("500_000", "100_000_000_000").replace("2048", "10_000_000")
    config = load(tmp_path, text)
    usage = Usage.of({TokenClass.PROMPT: config.models["smollm2"].context_tokens})
    assert rate_ceil(usage, config.rate_cards[0]) * 1_000_000 <= AMOUNT_MICROCREDITS_MAX


def test_a_free_model_is_allowed(tmp_path: Path) -> None:
    text = GOOD.replace("prompt = 500_000, completion = 2_000_000", "prompt = 0, completion = 0")
    assert load(tmp_path, text).rate_cards[0].price(TokenClass.REASONING) == 0


def test_a_key_is_read_from_the_environment_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_KEY", "very-secret")
    config = load(tmp_path, GOOD.replace("[models.smollm2]", 'api_key_env = "LLAMA_KEY"\n[models.smollm2]'))
    assert config.api_keys == {"llama": "very-secret"}
    assert "very-secret" not in repr(config)


@pytest.mark.parametrize("value", [None, ""])
def test_a_named_variable_that_holds_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("LLAMA_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("LLAMA_KEY", value)
    text = GOOD.replace("[models.smollm2]", 'api_key_env = "LLAMA_KEY"\n[models.smollm2]')
    assert problems(tmp_path, text) == {"backends.llama.api_key_env": "the environment variable LLAMA_KEY is not set"}


def test_a_grpc_backend_has_an_address(tmp_path: Path) -> None:
    text = GOOD.replace('"openai"', '"grpc"').replace('url = "http://127.0.0.1:8080/v1"', 'address = "127.0.0.1:9"')
    assert isinstance(load(tmp_path, text).backends["llama"], GrpcBackendTable)


def test_the_documented_limits_are_those_of_the_use_case() -> None:
    documented, built_in = Limits(), metering.Limits()
    shared = Limits.model_fields.keys() & {field.name for field in dataclasses.fields(built_in)}
    assert len(shared) >= 8
    assert {name: getattr(documented, name) for name in shared} == {name: getattr(built_in, name) for name in shared}


def test_a_backend_may_call_a_model_by_another_name(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD.replace('["llama"]', '["llama"]\nbackend_models = { llama = "SmolLM2" }'))
    assert config.model_names("llama") == {"smollm2": "SmolLM2"}
    assert load(tmp_path, GOOD).model_names("llama") == {"smollm2": "smollm2"}


CONTEXT = "models.smollm2.context_tokens"
PROMPT_PRICE = "rate_cards[0].microcredits_per_million_tokens.prompt"

# (what is replaced, by what, the key that must be named, a part of the reason)
WRONG = [
    ('path = "ledger.db"', 'path = "ledger.db"\npth = 1', "store.pth", "is not a known key: did you mean path?"),
    ("[store]", "[listner]\n[store]", "listner", "is not a known key: did you mean listener?"),
    ("context_tokens = 2048", "context_tokens = 2048\nprice = 1", "models.smollm2.price", "is not a known key"),
    ("2_000_000 }", "2_000_000, prmpt = 1 }", "rate_cards[0].microcredits_per_million_tokens.prmpt", "not a known key"),
    ('path = "ledger.db"', "", "store.path", "is missing"),
    (', path = "model.gguf"', "", "models.smollm2.tokenizer.path", "is missing"),
    ('url = "http://127.0.0.1:8080/v1"', "", "backends.llama.url", "is missing"),
    (", completion = 2_000_000", "", "rate_cards[0].microcredits_per_million_tokens.completion", "is missing"),
    (
        "context_tokens = 2048",
        'context_tokens = "2048"',
        "models.smollm2.context_tokens",
        "whole number; it is a text",
    ),
    (
        "context_tokens = 2048",
        "context_tokens = 2048.0",
        "models.smollm2.context_tokens",
        "whole number; it is a number with a point",
    ),
    (
        "context_tokens = 2048",
        "context_tokens = true",
        "models.smollm2.context_tokens",
        "whole number; it is true or false",
    ),
    ("context_tokens = 2048", "context_tokens = 1", "models.smollm2.context_tokens", "must be at least 2"),
    ("context_tokens = 2048", "context_tokens = 10_000_001", "models.smollm2.context_tokens", "must be at most 10"),
    ('backends = ["llama"]', 'backends = "llama"', "models.smollm2.backends", "must be a list, such as"),
    ('backends = ["llama"]', "backends = []", "models.smollm2.backends", "needs at least 1"),
    ('backends = ["llama"]', 'backends = ["lama"]', "models.smollm2.backends", "there is no backend 'lama'"),
    ('["llama"]', '["llama", "llama"]', "models.smollm2.backends", "names 'llama' 2 times"),
    ('["llama"]', '["llama"]\nbackend_models = { x = "y" }', "models.smollm2.backend_models", "'x' is no backend"),
    ('kind = "openai"', 'kind = "soap"', "backends.llama", "unknown kind 'soap'"),
    ('kind = "openai"', "", "backends.llama", "needs a kind"),
    ("http://127", "ftp://127", "backends.llama.url", "must be a URL"),
    ('"TOKENIZER"', '"GUESS"', "models.smollm2.counting", "must be 'TOKENIZER', 'TOKEN_IDS' or 'BACKEND'"),
    ('"TOKENIZER"', '"BACKEND"', "models.smollm2.tokenizer", "is not used"),
    ("model.gguf", "missing.gguf", "models.smollm2.tokenizer.path", "there is no file"),
    ("[models.smollm2]", '[models."a/b"]', "models.a/b", "must be 1 to 128 letters"),
    ("= 500_000", "= -1", PROMPT_PRICE, "must be at least 0"),
    (
        "= 500_000",
        "= 1.5",
        PROMPT_PRICE,
        "whole number; it is a number with a point",
    ),
    ("= 500_000", "= 100_000_000_001", PROMPT_PRICE, "must be at most 10"),
    ("00:00:00Z", "00:00:00", "rate_cards[0].effective_time", "needs a time zone"),
    (
        "2026-01-01T00:00:00Z",
        "2026-01-01",
        "rate_cards[0].effective_time",
        "must be a time, without quotes",
    ),
    ('model = "smollm2"', 'model = "smollm3"', "rate_cards[0].model", "there is no model 'smollm3'"),
    ('model = "smollm2"', 'model = "smollm3"', "models.smollm2", "has no price"),
    ("[store]", "[limits]\nrequests_max = 5\ncalls_max = 5\n[store]", "limits.calls_max", "above requests_max"),
    ("[store]", '[metrics]\naddress = "9464"\n[store]', "metrics.address", "must be HOST:PORT"),
    ("[store]", "[metrics]\naddress = 9464\n[store]", "metrics.address", "must be a text"),
    ("[store]", '[metrics]\naddress = "[::]:50051"\n[store]', "metrics.address", "has the port of listener.address"),
    ("[store]", "limits = 7\n[store]", "limits", "must be a table; it is a whole number"),
    ("[store]", '[listener]\ntls = "tls.crt"\n[store]', "listener.tls", "must be a table; it is a text"),
    ('"huggingface"', "2026-01-01", "models.smollm2.provider", "must be a text, such as"),
    ('"huggingface"', "2026-01-01", "models.smollm2.provider", "it is a date or a time"),
    ("[store]", "[limits]\nslice_tokens = 0\n[store]", "limits.slice_tokens", "must be at least 1"),
    ("[store]", "[limits]\ndrain_seconds_max = inf\n[store]", "limits.drain_seconds_max", ""),
    ("[store]", "[limits]\ndrain_seconds_max = -1\n[store]", "limits.drain_seconds_max", "must be above 0"),
    ("[store]", '[listener]\naddress = "50051"\n[store]', "listener.address", "must be HOST:PORT"),
    ("[store]", '[listener]\naddress = "a:65536"\n[store]', "listener.address", "must be HOST:PORT"),
    ("[store]", '[listener]\naddress = "a:１２"\n[store]', "listener.address", "must be HOST:PORT"),
    ("[store]", '[listener]\naddress = "a b:1"\n[store]', "listener.address", "must be HOST:PORT"),
    ("[store]", '[listener]\naddress = "::1:50051"\n[store]', "listener.address", "must be HOST:PORT"),
    ("[store]", '[listener]\naddress = "[::x]:1"\n[store]', "listener.address", "must be HOST:PORT"),
    ("127.0.0.1:8080", "[::1", "backends.llama.url", "must be a URL"),
    ("127.0.0.1:8080", "a:99999", "backends.llama.url", "must be a URL"),
    ("127.0.0.1:8080", "a:0", "backends.llama.url", "must be a URL"),
    ("127.0.0.1:8080", "user:word@a", "backends.llama.url", "with neither a user"),
    ("8080/v1", "8080/v1?key=1", "backends.llama.url", "with neither a user"),
    ("ledger.db", "led\\u0000ger.db", "store.path", "must have printable characters only"),
    ("2026-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "rate_cards[0].effective_time", "must be from 1970"),
    ("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+12:00", "rate_cards[0].effective_time", "must be from 1970"),
    ('"model.gguf"', f'"{"x" * 256}"', "models.smollm2.tokenizer.path", "there is no file"),
]


@pytest.mark.parametrize(("old", "new", "key", "reason"), WRONG)
def test_a_wrong_key_is_named_with_the_reason(tmp_path: Path, old: str, new: str, key: str, reason: str) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new))
    assert key in found
    assert reason in found[key]


def test_overlapping_rate_cards_are_refused(tmp_path: Path) -> None:
    first = GOOD.replace("00:00:00Z", "00:00:00Z\nexpire_time = 2026-02-01T00:00:00Z")
    assert problems(tmp_path, first + SECOND_CARD) == {
        "rate_cards": "the rate card 'card-2' of 'smollm2': it overlaps card-1"
    }


def test_a_card_that_expires_before_its_effect_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("00:00:00Z", "00:00:00Z\nexpire_time = 2025-02-01T00:00:00Z")
    assert "expires before" in problems(tmp_path, text)["rate_cards"]


def test_a_card_id_used_twice_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + SECOND_CARD.replace("card-2", "card-1"))
    assert found == {"rate_cards": "the id 'card-1' is used 2 times"}


@pytest.mark.parametrize("missing", ["models", "rate_cards", "backends", "store"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    parts = {"store": '[store]\npath = "x"', "backends": "[backends]", "models": "[models]", "rate_cards": ""}
    text = "rate_cards = []\n" * (missing != "rate_cards")
    text += "\n".join(part for name, part in parts.items() if name != missing)
    assert missing in problems(tmp_path, text)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('["llama"]', '["lama"]').replace('model = "smollm2"', 'model = "smollm3"')
    assert problems(tmp_path, text).keys() == {"models.smollm2", "models.smollm2.backends", "rate_cards[0].model"}


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    assert "at line 2, column 7" in problems(tmp_path, "\n[store\n")[""]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metergate.toml"
    file.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigInvalid, match="not UTF-8 text: byte 5"):
        load_config(file)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load_config(tmp_path / name)


def test_an_enormous_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metergate.toml"
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigInvalid, match="larger than 1,048,576 bytes"):
        load_config(file)


def test_the_metrics_port_can_be_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).metrics.address == "127.0.0.1:9464"
    assert load(tmp_path, GOOD.replace("[store]", '[metrics]\naddress = ""\n[store]')).metrics.address is None


EXAMPLE = Path(__file__).parents[2] / "docs" / "guides" / "metergate.example.toml"


def test_the_annotated_example_loads(tmp_path: Path) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    config = load(tmp_path, EXAMPLE.read_text())
    assert config.model_names("native") == {"smollm2-135m": "SmolLM2-135M-Instruct"}


def test_the_annotated_example_shows_every_default_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    shown = EXAMPLE.read_text()
    with_defaults = re.sub(r"^# (\w+ = [^ ]+)$", r"\1", shown, flags=re.MULTILINE)
    assert with_defaults.count("\n# ") < shown.count("\n# ") - 10
    plain, explicit = load(tmp_path, shown), load(tmp_path, with_defaults)
    assert explicit == plain
    assert explicit.limits.model_fields_set == Limits.model_fields.keys()


@pytest.mark.parametrize("text", ["a = " + "[" * 3_000, "a = " + "9" * 5_000, "\ufeff[store]"])
def test_a_file_that_toml_cannot_hold_is_refused(tmp_path: Path, text: str) -> None:
    assert "TOML" in problems(tmp_path, text)[""]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::]:50051", "localhost:1", "metergate_1.internal:65535"])
def test_these_addresses_can_be_listened_on(tmp_path: Path, address: str) -> None:
    text = f'[listener]\naddress = "{address}"\nplaintext_beyond_loopback = true\n{GOOD}'
    assert load(tmp_path, text).listener.address == address


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:50051", "metergate:50051"])
def test_plaintext_beyond_this_machine_must_be_asked_for(tmp_path: Path, address: str) -> None:
    listener = f'[listener]\naddress = "{address}"\n'
    problem = problems(tmp_path, listener + GOOD)["listener.address"]
    assert f"{address} is beyond this machine" in problem
    assert "[listener.tls]" in problem
    assert "plaintext_beyond_loopback = true" in problem
    tls = 'tls = { certificate_path = "a.crt", key_path = "a.key" }\n'
    assert load(tmp_path, listener + tls + GOOD).listener.tls is not None
    both = f"{listener}plaintext_beyond_loopback = true\n{tls}{GOOD}"
    assert "contradicts" in problems(tmp_path, both)["listener.plaintext_beyond_loopback"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "localhost:1"])
def test_plaintext_on_this_machine_needs_no_asking(tmp_path: Path, address: str) -> None:
    assert load(tmp_path, f'[listener]\naddress = "{address}"\n{GOOD}').listener.address == address


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('address = "far.example:1"\napi_key_env = "FAR_KEY"', "backends.far.api_key_env"),
        ('address = "127.0.0.1:1"\nca_path = "ca.crt"', "backends.far.ca_path"),
        ('address = "far.example:1"\napi_key_env = "FAR_KEY"\ntls = true', None),
        ('address = "127.0.0.1:1"\napi_key_env = "FAR_KEY"', None),
        ('address = "far.example:1"\napi_key_env = "FAR_KEY"\nplaintext_beyond_loopback = true', None),
        ('address = "far.example:1"', None),
    ],
)
def test_a_backends_key_crosses_the_network_over_tls_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, key: str | None
) -> None:
    monkeypatch.setenv("FAR_KEY", "secret")
    text = f'{GOOD}\n[backends.far]\nkind = "grpc"\n{table}\n'
    if key is None:
        assert "far" in load(tmp_path, text).backends
    else:
        assert set(problems(tmp_path, text)) == {key}


@pytest.mark.parametrize(
    ("url", "more", "key"),
    [
        ("http://far.example/v1", "", "api_key_env"),
        ("http://10.0.0.7:8080/v1", "", "api_key_env"),
        ("http://[2001:db8::1]:8080/v1", "", "api_key_env"),
        ("http://far.example/v1", "plaintext_beyond_loopback = true", None),
        ("https://far.example/v1", "", None),
        ("http://127.0.0.1:8080/v1", "", None),
        ("http://localhost/v1", "", None),
        ("http://[::1]/v1", "", None),
        ("https://far.example/v1", "plaintext_beyond_loopback = true", "plaintext_beyond_loopback"),
        ("http://localhost/v1", "plaintext_beyond_loopback = true", "plaintext_beyond_loopback"),
    ],
)
def test_a_backends_key_crosses_the_network_over_https_only_unless_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, more: str, key: str | None
) -> None:
    monkeypatch.setenv("FAR_KEY", "secret")
    text = f'{GOOD}\n[backends.far]\nkind = "openai"\nurl = "{url}"\napi_key_env = "FAR_KEY"\n{more}\n'
    if key is None:
        assert "far" in load(tmp_path, text).backends
    else:
        assert set(problems(tmp_path, text)) == {f"backends.far.{key}"}


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ('tls = true\ncertificate_path = "a.crt"\nkey_path = "a.key"', set()),
        ('tls = true\ncertificate_path = "a.crt"', {"key_path"}),
        ('tls = true\nkey_path = "a.key"', {"certificate_path"}),
        ('certificate_path = "a.crt"\nkey_path = "a.key"', {"certificate_path", "key_path"}),
    ],
)
def test_a_certificate_that_is_shown_to_a_backend_needs_its_key_and_tls(
    tmp_path: Path, lines: str, keys: set[str]
) -> None:
    text = f'{GOOD}\n[backends.far]\nkind = "grpc"\naddress = "far.example:1"\n{lines}\n'
    if keys:
        assert set(problems(tmp_path, text)) == {f"backends.far.{key}" for key in keys}
    else:
        assert "far" in load(tmp_path, text).backends


def test_a_line_in_which_no_request_can_wait_so_long_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("[models.smollm2]", "queue_seconds_max = 601.0\n[models.smollm2]")
    assert "request_seconds_max, which is 600" in problems(tmp_path, text)["backends.llama.queue_seconds_max"]


def test_backends_of_a_model_have_weights_one_unless_told(tmp_path: Path) -> None:
    two = GOOD.replace("[models.smollm2]", '[backends.other]\nkind = "grpc"\naddress = "127.0.0.1:1"\n[models.smollm2]')
    two = two.replace('["llama"]', '["llama", "other"]\nbackend_weights = { other = 3 }')
    assert catalog_of(load(tmp_path, two)).get("smollm2").weights() == {"llama": 1, "other": 3}
    assert catalog_of(load(tmp_path, two.replace("3 }", "0 }"))).get("smollm2").weights() == {"llama": 1, "other": 0}


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("{ lama = 1 }", "'lama' is no backend of this model"),
        ("{ llama = 0 }", "all of its backends stand by"),
        ("{ llama = -1 }", "must be at least 0"),
        ("{ llama = 1001 }", "must be at most 1000"),
        ("{ llama = 0.5 }", "whole number; it is a number with a point"),
    ],
)
def test_a_weight_that_means_nothing_is_refused(tmp_path: Path, weights: str, problem: str) -> None:
    [(key, told)] = problems(tmp_path, GOOD.replace('["llama"]', f'["llama"]\nbackend_weights = {weights}')).items()
    assert key.startswith("models.smollm2.backend_weights")
    assert problem in told


@pytest.mark.parametrize("url", ["https://a.example", "http://[::1]:8080/v1", "http://llama_1:1/a%20b/"])
def test_these_urls_can_be_called(tmp_path: Path, url: str) -> None:
    backend = load(tmp_path, GOOD.replace("http://127.0.0.1:8080/v1", url)).backends["llama"]
    assert isinstance(backend, OpenAIBackendTable)
    assert backend.url == url


# --- what a model does, and what its backends take ------------------------------------------------------------------

EMBEDDING = (
    GOOD.replace('counting = "TOKENIZER"', 'counting = "TOKENIZER"\ntask = "embedding"\ndimensions = 576')
    .replace(", completion = 2_000_000", "")
    .replace("smollm2", "vectors")
)


def test_an_embedding_model_has_dimensions_and_a_price_of_prompts_only(tmp_path: Path) -> None:
    model = catalog_of(load(tmp_path, EMBEDDING)).get("vectors")
    assert (model.task, model.dimensions, model.dimensions_selectable) == (ModelTask.EMBEDDING, 576, False)
    assert dict(model.rate_cards[0].prices) == {TokenClass.PROMPT: 500_000, TokenClass.CACHED_PROMPT: 500_000}


@pytest.mark.parametrize(
    ("text", "old", "new", "key"),
    [
        (EMBEDDING, "dimensions = 576", "", "models.vectors.dimensions"),
        (EMBEDDING, "dimensions = 576", "dimensions = 0", "models.vectors.dimensions"),
        (EMBEDDING, "dimensions = 576", "dimensions = 1_000_001", "models.vectors.dimensions"),
        (EMBEDDING, '"embedding"', '"painting"', "models.vectors.task"),
        (
            EMBEDDING,
            "prompt = 500_000",
            "prompt = 500_000, completion = 1",
            "rate_cards[0].microcredits_per_million_tokens.completion",
        ),
        (
            EMBEDDING,
            "prompt = 500_000",
            "prompt = 500_000, reasoning = 1",
            "rate_cards[0].microcredits_per_million_tokens.reasoning",
        ),
        (EMBEDDING, '"model.gguf"', '"model.gguf", prompt_rule = "openai"', "models.vectors.tokenizer.prompt_rule"),
        (
            EMBEDDING,
            '"model.gguf"',
            '"model.gguf", chat_template_path = "model.gguf"',
            "models.vectors.tokenizer.chat_template_path",
        ),
        (GOOD, "context_tokens = 2048", "context_tokens = 2048\ndimensions = 3", "models.smollm2.dimensions"),
        (
            GOOD,
            "context_tokens = 2048",
            "context_tokens = 2048\ndimensions_selectable = true",
            "models.smollm2.dimensions_selectable",
        ),
        (GOOD, 'kind = "openai"', 'kind = "openai"\nparameters = ["n"]', "backends.llama.parameters[0]"),
        (GOOD, 'kind = "openai"', 'kind = "openai"\nvector_encoding = "hex"', "backends.llama.vector_encoding"),
    ],
)
def test_what_contradicts_a_models_task_is_refused_by_its_key(
    tmp_path: Path, text: str, old: str, new: str, key: str
) -> None:
    assert old in text
    assert list(problems(tmp_path, text.replace(old, new))) == [key]


def parameters_of_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> frozenset[Parameter]:
    monkeypatch.setattr(offerings, "open_tokenizer", lambda spec: None)
    return Parts.of(load(tmp_path, text)).catalog.get("smollm2").parameters


def test_a_model_takes_what_every_one_of_its_backends_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = parameters_of_smollm2(tmp_path, monkeypatch, GOOD)
    assert documented == ALL_PARAMETERS - {Parameter.TOP_K, Parameter.MIN_P, Parameter.ASSISTANT_LAST}
    native = GOOD.replace('kind = "openai"\nurl = "http://127.0.0.1:8080/v1"', 'kind = "grpc"\naddress = "127.0.0.1:1"')
    assert parameters_of_smollm2(tmp_path, monkeypatch, native) == ALL_PARAMETERS
    named = 'parameters = ["sampling.top_k", "sampling.seed"]'
    chosen = GOOD.replace('kind = "openai"', f'kind = "openai"\n{named}')
    assert parameters_of_smollm2(tmp_path, monkeypatch, chosen) == {Parameter.TOP_K, Parameter.SEED}
    both = chosen.replace('backends = ["llama"]', 'backends = ["llama", "other"]') + (
        '[backends.other]\nkind = "openai"\nurl = "http://127.0.0.1:8081/v1"\n'
    )
    assert parameters_of_smollm2(tmp_path, monkeypatch, both) == {Parameter.SEED}
    none = GOOD.replace('kind = "openai"', 'kind = "openai"\nparameters = []')
    assert not parameters_of_smollm2(tmp_path, monkeypatch, none)


@pytest.mark.parametrize("url", ["https://far.example/vet", "http://127.0.0.1:8090/vet", "http://localhost/vet"])
def test_a_content_policy_is_asked_over_https_or_on_this_machine(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f'{GOOD}\n[content_policy]\nurl = "{url}"\n').content_policy.url == url


def test_texts_of_answers_do_not_cross_the_network_readable(tmp_path: Path) -> None:
    found = problems(tmp_path, f'{GOOD}\n[content_policy]\nurl = "http://far.example/vet"\n')
    assert "use https" in found["content_policy.url"]


def test_how_long_what_is_done_with_is_kept_and_how_the_books_are_watched_can_be_set(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert (config.retention.closed_reservation_days, config.audit.sample_subscribers) == (7, 100)
    assert not config.audit.stop_admissions_on_difference
    tables = """
        retention = { closed_reservation_days = 1 }
        audit = { sample_subscribers = 0, interval_seconds = 0.5, stop_admissions_on_difference = true }
    """
    config = load(tmp_path, tables + GOOD)
    assert config.retention.closed_reservation_days == 1
    assert (config.audit.sample_subscribers, config.audit.interval_seconds) == (0, 0.5)
    assert config.audit.stop_admissions_on_difference
    with pytest.raises(ConfigInvalid, match="closed_reservation_days"):
        load(tmp_path, GOOD + "\n[retention]\nclosed_reservation_days = 0\n")

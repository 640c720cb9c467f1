"""Which HTTP a backend is called with."""

from pathlib import Path

import pytest
from gateway_process import openai_backend, write_config

from metergate.config import OpenAIBackendTable, load_config
from metergate.config import problems as found
from metergate.core.errors import ConfigInvalid

URL = "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_backend_is_called_with_the_version_that_it_is_set_up_with(tmp_path: Path, version: str) -> None:
    config = load_config(write_config(tmp_path, openai_backend(URL, http_version=version)))
    table = config.backends["only"]
    assert isinstance(table, OpenAIBackendTable)
    assert table.http_version == version


def test_a_version_that_is_not_spoken_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"backends\.only\.http_version: .*'1\.1' or '2'"):
        load_config(write_config(tmp_path, openai_backend(URL, http_version="3")))


def test_without_the_library_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "find_spec", lambda module: None if module == "h2" else object())
    load_config(write_config(tmp_path, openai_backend(URL)))
    with pytest.raises(ConfigInvalid, match=r"backends\.only\.http_version: .*pip install 'metergate\[http2\]'"):
        load_config(write_config(tmp_path, openai_backend(URL, http_version="2")))

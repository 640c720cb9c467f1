"""What tests of backends share."""

import either_http
import pytest


@pytest.fixture(params=["1.1", "2"], ids=["HTTP/1.1", "HTTP/2"])
def http_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of HTTP that this run of the test speaks."""
    monkeypatch.setattr(either_http, "http_version", request.param)
    return str(request.param)

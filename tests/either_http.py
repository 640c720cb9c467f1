"""One test for both versions of HTTP: the fixture ``http_version`` says which one it runs with."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import scripted_backend
from scripted_http2 import ScriptedHttp2Server, scripted_http2_server

http_version: Literal["1.1", "2"] = "1.1"  # of the test that runs


def scripted_server(
    *script: Any, **options: Any
) -> AbstractAsyncContextManager[scripted_backend.ScriptedServer | ScriptedHttp2Server]:
    """A server that plays the script, over this test's version of HTTP."""
    if http_version == "2":
        return scripted_http2_server(*script, **options)
    return scripted_backend.scripted_server(*script, **options)

"""What is on sale is replaced as a whole: what is used again is kept, and the rest is closed by its last user."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest
from metering_world import ROOMY, SilentPoolObserver

from metergate import offerings
from metergate.backends.openai import OpenAIBackendOptions
from metergate.core.catalog import Catalog
from metergate.core.standing import FAILURES_MAX, Event
from metergate.metering.pool import Health
from metergate.offerings import BackendOptions, BackendParts, Offerings, Parts
from metergate.ports import Backend


@dataclass(eq=False)
class Opened:
    options: OpenAIBackendOptions
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def backend_id(self) -> str:
        return self.options.backend_id

    async def close(self) -> None:
        assert not self.closed.is_set()
        self.closed.set()


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    opened: list[Opened] = []

    def open_backend(options: BackendOptions) -> Backend:
        opened.append(Opened(cast("OpenAIBackendOptions", options)))
        return cast("Backend", opened[-1])

    monkeypatch.setattr(offerings, "_open_backend", open_backend)
    return opened


def parts(**urls: str) -> Parts:
    return Parts(
        catalog=Catalog({}),
        tokenizers={},
        backends={
            backend_id: BackendParts(
                options=OpenAIBackendOptions(
                    backend_id=backend_id, url=url, model_names={}, connect_timeout_seconds=1.0
                ),
                limits=ROOMY,
            )
            for backend_id, url in urls.items()
        },
    )


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_backend_that_did_not_change_is_kept_and_one_that_did_is_opened_anew(opened: list[Opened]) -> None:
    sold = Offerings(parts(a="http://a", b="http://b"), SilentPoolObserver())
    sold.replace(parts(a="http://a", b="http://other"))
    await settle()
    assert [backend.options.url for backend in opened] == ["http://a", "http://b", "http://other"]
    assert [backend.closed.is_set() for backend in opened] == [False, True, False]
    await sold.close()
    assert all(backend.closed.is_set() for backend in opened)


async def test_a_backend_is_closed_when_the_last_request_that_may_use_it_ended(opened: list[Opened]) -> None:
    sold = Offerings(parts(a="http://a"), SilentPoolObserver())
    first = sold.current
    first.enter()
    first.enter()
    second = sold.replace(parts(a="http://a", b="http://b"))
    second.enter()
    sold.replace(parts(c="http://c"))
    second.leave()
    await settle()
    a, b, c = opened
    assert (a.closed.is_set(), b.closed.is_set(), c.closed.is_set()) == (False, True, False)
    first.leave()
    await settle()
    assert not a.closed.is_set()
    first.leave()
    await settle()
    assert (a.closed.is_set(), c.closed.is_set()) == (True, False)
    await sold.close()


async def test_a_backend_that_left_and_came_back_serves_both(opened: list[Opened]) -> None:
    sold = Offerings(parts(a="http://a"), SilentPoolObserver())
    first = sold.current
    first.enter()
    sold.replace(parts(b="http://b"))
    sold.replace(parts(a="http://a"))
    await settle()
    old, between, new = opened
    assert (old.closed.is_set(), between.closed.is_set(), new.closed.is_set()) == (False, True, False)
    first.leave()
    await settle()
    assert (old.closed.is_set(), new.closed.is_set()) == (True, False)
    await sold.close()


async def test_a_backend_that_did_not_change_keeps_what_is_known_of_it(opened: list[Opened]) -> None:
    sold = Offerings(parts(a="http://a", b="http://b"), SilentPoolObserver())
    before = sold.current.pool
    for member in before.members.values():
        for _ in range(FAILURES_MAX):
            before.note(member, "model-1", Event.FAILED, 0)
    after = sold.replace(parts(a="http://a", b="http://other")).pool
    assert before.health() == {"a": Health.EJECTED, "b": Health.EJECTED}
    assert after.health() == {"a": Health.EJECTED, "b": Health.UP}
    await sold.close()


async def test_closing_closes_what_running_requests_use_too(opened: list[Opened]) -> None:
    sold = Offerings(parts(a="http://a"), SilentPoolObserver())
    sold.current.enter()
    sold.replace(parts(b="http://b"))
    await sold.close()
    await settle()
    assert all(backend.closed.is_set() for backend in opened)

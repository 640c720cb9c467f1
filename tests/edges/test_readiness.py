"""Whether the gateway can serve, and who is told."""

import asyncio

import pytest
from fakes import MemoryLedgerStore
from grpc_health.v1 import health, health_pb2
from metering_world import ScriptedBackend, pool_of

from metergate.core.standing import FAILURES_MAX, Event
from metergate.edges import readiness
from metergate.edges.readiness import Readiness, Report, tell_health
from metergate.metering import pool
from metergate.metering.pool import Health

INFERENCE, ACCOUNT, CATALOG = (
    f"metergate.v1.{name}" for name in ("InferenceService", "AccountService", "CatalogService")
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

READY = Report(ledger_problem="", backends={"backend-1": Health.UP})


class SwitchedBackend(ScriptedBackend):
    """Up or down as the test says."""

    def __init__(self, up: bool | Exception | None, backend_id: str = "backend-0") -> None:
        super().__init__([], backend_id)
        self.up = up

    async def is_up(self) -> bool:
        if self.up is None:
            await asyncio.Event().wait()
        if isinstance(self.up, Exception):
            raise self.up
        return bool(self.up)


class HangingStore(MemoryLedgerStore):
    async def check(self) -> None:
        await asyncio.Event().wait()


class BrokenStore(MemoryLedgerStore):
    async def check(self) -> None:
        raise RuntimeError("a defect")


async def look(ledger: MemoryLedgerStore, *backends: bool | Exception | None) -> Report:
    looked_at = pool_of([SwitchedBackend(up, f"backend-{index}") for index, up in enumerate(backends)])
    return await Readiness(ledger, lambda: looked_at).look()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "ANSWER_SECONDS_MAX", 0.05)
    monkeypatch.setattr(pool, "LOOK_SECONDS_MAX", 0.05)


async def test_a_gateway_is_ready_when_its_store_takes_writes_and_any_backend_is_up() -> None:
    report = await look(MemoryLedgerStore(), False, True)
    assert report.is_ready
    assert report.backends == {"backend-0": Health.DOWN, "backend-1": Health.UP}


@pytest.mark.parametrize("up", [False, None, RuntimeError("a defect")])
async def test_a_gateway_without_a_backend_is_not_ready(up: bool | Exception | None) -> None:
    report = await look(MemoryLedgerStore(), up)
    assert not report.is_ready
    assert report.is_ledger_writable


async def test_a_gateway_whose_backends_all_failed_again_and_again_is_not_ready() -> None:
    looked_at = pool_of([SwitchedBackend(True)])
    for _ in range(FAILURES_MAX):
        looked_at.note(looked_at.members["backend-0"], "model-1", Event.FAILED, 0)
    report = await Readiness(MemoryLedgerStore(), lambda: looked_at).look()
    assert not report.is_ready
    assert report.as_json()["checks"] == {
        "ledger": "ok",
        "audit": "ok",
        "backends": {"backend-0": "ejected"},
        "draining": False,
    }


async def test_a_gateway_whose_store_fails_is_not_ready_and_says_why() -> None:
    ledger = MemoryLedgerStore()
    ledger.fail_next(1)
    report = await look(ledger, True)
    assert not report.is_ready
    assert report.ledger_problem == "The ledger's store is unavailable."


async def test_a_store_that_hangs_or_has_a_defect_is_not_ready_and_the_look_ends() -> None:
    assert "did not take a write" in (await look(HangingStore(), True)).ledger_problem
    assert (await look(BrokenStore(), True)).ledger_problem == "RuntimeError"


async def test_before_the_first_look_nothing_is_ready() -> None:
    assert not Readiness(MemoryLedgerStore(), lambda: pool_of([])).report.is_ready


async def test_a_drained_gateway_stays_unready_whatever_later_looks_find() -> None:
    looked_at = pool_of([SwitchedBackend(True)])
    seen = Readiness(MemoryLedgerStore(), lambda: looked_at)
    assert (await seen.look()).is_ready
    assert not seen.drain().is_ready
    assert not (await seen.look()).is_ready


async def test_it_keeps_looking_and_tells_of_loss_and_return() -> None:
    backend = SwitchedBackend(True)
    looked_at = pool_of([backend])
    seen = Readiness(MemoryLedgerStore(), lambda: looked_at)
    told: asyncio.Queue[bool] = asyncio.Queue(1)

    async def tell(report: Report) -> None:
        await told.put(report.is_ready)

    watching = asyncio.create_task(seen.watch(tell, seconds=0.0))
    for up in (True, False, True):
        backend.up = up
        async with asyncio.timeout(5):
            while await told.get() is not up:
                pass
    watching.cancel()
    await asyncio.wait([watching])


async def statuses(servicer: health.aio.HealthServicer) -> dict[str, int]:
    asked = {name: health_pb2.HealthCheckRequest(service=name) for name in ("", INFERENCE, ACCOUNT, CATALOG)}
    return {name: (await servicer.Check(request, None)).status for name, request in asked.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (READY, (SERVING, SERVING, SERVING, SERVING)),
        (Report(ledger_problem="", backends={"b": Health.EJECTED}), (NOT_SERVING, NOT_SERVING, SERVING, SERVING)),
        (
            Report(ledger_problem="full", backends={"b": Health.RETURNING}),
            (NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING),
        ),
    ],
)
async def test_each_service_is_served_while_what_it_needs_is_there(
    report: Report, expected: tuple[int, int, int, int]
) -> None:
    servicer = health.aio.HealthServicer()
    for told in (READY, report):
        await tell_health(servicer, told)
    assert tuple((await statuses(servicer)).values()) == expected
    await tell_health(servicer, READY)
    assert set((await statuses(servicer)).values()) == {SERVING}


async def test_a_gateway_that_shuts_down_serves_nothing_any_more() -> None:
    servicer = health.aio.HealthServicer()
    await tell_health(servicer, READY)
    await servicer.enter_graceful_shutdown()
    await tell_health(servicer, READY)
    assert set((await statuses(servicer)).values()) == {NOT_SERVING}


async def test_a_gateway_whose_books_differ_is_not_ready_and_says_so_after_every_further_look() -> None:
    looked_at = pool_of([SwitchedBackend(True)])
    readiness = Readiness(MemoryLedgerStore(), lambda: looked_at)
    assert (await readiness.look()).is_ready
    readiness.stop()
    report = await readiness.look()
    assert not report.is_ready
    assert report.is_ledger_writable
    checks = report.as_json()["checks"]
    assert isinstance(checks, dict)
    assert checks["audit"] == "the books differ"

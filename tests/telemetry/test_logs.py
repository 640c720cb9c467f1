"""The log: one line a request, with ids and numbers and no text."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from metering_world import STOP, ScriptedBackend, World, content, request

from metergate.core.errors import BackendUnavailable, InsufficientCredit, MetergateError
from metergate.core.inference import Delta
from metergate.telemetry.log_lines import FIELDS
from metergate.telemetry.logs import RequestLog

STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, Any]]]:
    """Level, event and fields of the request log's lines."""
    ours = [record for record in caplog.records if record.name == "metergate.telemetry.logs"]
    return [(record.levelname, record.getMessage(), fields_of(record)) for record in ours]


def the_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    [(level, event, fields)] = lines(caplog)
    assert (level, event) == ("INFO", "request ended")
    return fields


def observers() -> list[RequestLog]:
    return [RequestLog(asyncio.get_running_loop().time)]


async def test_a_request_that_ends_well_is_one_line_with_all_that_it_cost(caplog: pytest.LogCaptureFixture) -> None:
    world = await World([*content("one", " two"), STOP], observers=observers()).fund(10_000)
    await world.stream()
    line = the_line(caplog)
    [charge] = await world.charges()
    assert line.pop("seconds") >= line.pop("first_token_seconds") >= 0
    assert line == {
        "verb": "StreamComplete",
        "request_id": "request-1",
        "subscriber": "subscriber-1",
        "authorization": "authorization-1",
        "app": "app-1",
        "channel": "APP",
        "model": "model-1",
        "outcome": "OK",
        "close_cause": "FINISHED",
        "finish_reason": "STOP",
        "backend": "backend-1",
        "attempts": 1,
        "deliveries": len(world.sink.deltas),
        "reservation": charge.reservation_id,
        "charge": charge.charge_id,
        "charged_microcredits": charge.charged_microcredits,
        "tokens": {token_class.value: count for token_class, count in charge.usage_counted},
    }


async def test_a_failing_backend_is_a_warning_and_the_request_names_the_one_that_served_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="HTTP 500")], "away")
    serving = ScriptedBackend([*content("one"), STOP], "here")
    world = await World(backends=[failing, serving], observers=observers()).fund(10_000)
    await world.stream()
    (level, event, failure), (_, _, ended) = lines(caplog)
    assert (level, event) == ("WARNING", "backend failed")
    assert (failure["backend"], failure["problem"], failure["request_id"]) == ("away", "HTTP 500", "request-1")
    assert (ended["backend"], ended["attempts"]) == ("here", 2)


async def test_a_refused_request_has_a_line_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    world = await World([STOP], observers=observers()).fund(1)
    with pytest.raises(InsufficientCredit):
        await world.stream()
    line = the_line(caplog)
    assert line["outcome"] == "INSUFFICIENT_CREDIT"
    assert not line.keys() & {"charge", "close_cause", "backend", "first_token_seconds"}


async def test_a_cancelled_requests_line_has_its_charge(caplog: pytest.LogCaptureFixture) -> None:
    never = asyncio.Event()
    world = await World([*content("one"), never], observers=observers()).fund(10_000)
    call = asyncio.create_task(world.stream())
    await world.sink.delivered.wait()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await world.settled()
    line = the_line(caplog)
    [charge] = await world.charges()
    assert (line["outcome"], line["close_cause"]) == ("CANCELLED", "CLIENT_CANCELLED")
    assert (line["charge"], line["charged_microcredits"]) == (charge.charge_id, charge.charged_microcredits)


async def test_a_defects_line_says_nothing_of_its_text(caplog: pytest.LogCaptureFixture) -> None:
    world = await World([ValueError("zanzibar")], observers=observers()).fund(10_000)
    with pytest.raises(ValueError, match="zanzibar"):
        await world.stream()
    assert the_line(caplog)["outcome"] == MetergateError.reason
    assert "zanzibar" not in str([vars(record) for record in caplog.records])


async def test_every_field_of_the_request_log_is_let_through_and_none_has_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delta = Delta(content="marmalade", reasoning_content="obelisk")
    failing = ScriptedBackend([BackendUnavailable(model_id="model-1", problem="away")], "away")
    world = await World(backends=[failing, ScriptedBackend([delta, STOP], "here")], observers=observers()).fund(10_000)
    await world.stream(request("zanzibar quetzal"))
    for _, _, fields in lines(caplog):
        assert fields.keys() <= FIELDS
        assert not any(word in str(fields) for word in ("zanzibar", "quetzal", "marmalade", "obelisk"))


async def test_a_line_names_the_apps_trace(caplog: pytest.LogCaptureFixture) -> None:
    world = await World([*content("one"), STOP], observers=observers()).fund(10_000)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await world.stream(trace_context={"traceparent": parent})
    assert the_line(caplog)["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_above_info_a_request_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "metergate")
    world = await World([*content("one"), STOP], observers=observers()).fund(10_000)
    await world.stream()
    assert lines(caplog) == []

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from metergate.core import errors
from metergate.edges.status import STATUS_CODES, VIOLATIONS_MAX, to_status
from metergate.telemetry.failures import describe

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"

# Defects, and what can only happen while the gateway is set up or to a command: an app is only told that it failed.
INTERNAL_ON_PURPOSE = {
    "BackupRefused",
    "CertificateInvalid",
    "CommandRefused",
    "ConfigInvalid",
    "FileRefused",
    "LedgerInvariantBroken",
    "ListenerRefused",
    "RateCardInvalid",
    "StoreRefused",
    "TokenizerInvalid",
    "TransitionInvalid",
}


def all_errors(base: type[errors.MetergateError] = errors.MetergateError) -> Iterator[type[errors.MetergateError]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("metergate."):
            yield kind
        yield from all_errors(kind)


def detail(status: Status, kind: type[Any]) -> Any:
    message = kind()
    assert any(packed.Unpack(message) for packed in status.details), f"no {kind.__name__}"
    return message


def test_every_error_has_a_status_or_is_internal_on_purpose() -> None:
    without = {kind.__name__ for kind in all_errors() if kind not in STATUS_CODES}
    assert without <= INTERNAL_ON_PURPOSE
    assert not INTERNAL_ON_PURPOSE & {kind.__name__ for kind in STATUS_CODES}


def test_every_error_an_app_sees_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in STATUS_CODES]
    assert len(set(reasons)) == len(reasons)
    assert "INTERNAL" not in reasons


def test_the_reference_of_errors_has_each_with_its_status_and_metadata() -> None:
    told = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (?:`(.*?)`)? ?\|", REFERENCE.read_text(), re.MULTILINE)
    known = [(kind.reason, code.name, "`, `".join(told_fields(kind))) for kind, code in STATUS_CODES.items()]
    assert sorted(told) == sorted([*known, ("INTERNAL", "INTERNAL", "")])


def told_fields(kind: Any) -> list[str]:
    """What an error's metadata may have."""
    own_fields: tuple[Field[Any], ...] = fields(kind) if hasattr(kind, "__dataclass_fields__") else ()
    return [own.name for own in own_fields if errors.UNTOLD not in own.metadata and own.name != "field"]


def test_the_values_of_the_message_are_metadata_and_the_charge_is_named() -> None:
    error = errors.BackendUnavailable(model_id="small", problem="it hung up", charge="subscribers/z/charges/c1")
    status = to_status(error)
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert status.message == "The backend of small failed: it hung up."
    info = detail(status, ErrorInfo)
    assert (info.domain, info.reason) == ("metergate", "BACKEND_UNAVAILABLE")
    assert dict(info.metadata) == {
        "model_id": "small",
        "problem": "it hung up",
        "charge": "subscribers/z/charges/c1",
    }


@pytest.mark.parametrize(
    "error",
    [
        errors.StoreUnavailable(),
        errors.ShuttingDown(),
        errors.Overloaded(limit="2 requests at once"),
        errors.BackendUnavailable(model_id="m", problem="p"),
    ],
)
def test_what_may_work_again_says_when_to_retry(error: errors.MetergateError) -> None:
    assert detail(to_status(error), RetryInfo).retry_delay.seconds == 1


@pytest.mark.parametrize(("known_seconds", "milliseconds"), [(12.3456, 12_346), (0.2, 1_000), (None, 1_000)])
def test_a_backend_that_is_left_out_says_when_it_is_tried_again(known_seconds: float | None, milliseconds: int) -> None:
    error = errors.BackendUnavailable(model_id="m", problem="p", retry_seconds=known_seconds, was_reached=False)
    status = to_status(error)
    assert detail(status, RetryInfo).retry_delay.ToMilliseconds() == milliseconds
    assert "was_reached" not in detail(status, ErrorInfo).metadata


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (errors.PromptTooLong(model_id="m", prompt_tokens=9, prompt_tokens_max=8), "messages"),
        (errors.MessageTooLarge(bytes=9, bytes_max=8), "request"),
        (errors.BackendRejected(model_id="m", problem="p"), "request"),
        (errors.ModelTaskWrong(model_id="m", task="CHAT"), "model"),
        (errors.RequestInvalid(errors.Violation("inference.model", "is wrong")), "inference.model"),
    ],
)
def test_an_invalid_argument_names_its_field(error: errors.MetergateError, field: str) -> None:
    status = to_status(error)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [violation.field for violation in detail(status, BadRequest).field_violations] == [field]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret prompt"),
        errors.LedgerInvariantBroken(problem="secret number"),
        errors.TransitionInvalid(state="SETTLED", event="secret event"),
    ],
)
def test_a_defect_tells_the_app_nothing_of_the_inside(error: Exception) -> None:
    status = to_status(error)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"secret" not in status.SerializeToString()
    assert detail(status, ErrorInfo).reason == "INTERNAL"


def test_the_largest_status_fits_the_metadata_of_http2() -> None:
    field, text = "f" * 9_999, "模" * 9_999
    violations = [errors.Violation(field, text)] * 1_000
    for error in (errors.RequestInvalid(*violations), errors.BackendRejected(model_id=text, problem=text)):
        status = to_status(error)
        wire = len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 // 3
        assert wire < 6 * 1024
    assert len(detail(to_status(errors.RequestInvalid(*violations)), BadRequest).field_violations) == VIOLATIONS_MAX


def test_text_that_utf8_cannot_say_still_becomes_a_status() -> None:
    assert "?" in to_status(errors.BackendRejected(model_id="m", problem="\ud800")).message


def test_the_log_tells_where_a_defect_arose_but_not_what_it_quotes() -> None:
    prompt = " ".join(["my", "password"])
    try:
        try:
            raise ValueError(prompt)
        except ValueError as exc:
            raise errors.LedgerInvariantBroken(problem="captured > reserved") from exc
    except errors.MetergateError as error:
        text = describe(error)
    assert "test_status.py" in text
    assert "ValueError" in text
    assert "captured > reserved" in text
    assert prompt not in text

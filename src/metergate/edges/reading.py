"""Ids and names of resources in requests: what is wrong with them is noted with the rest of the request."""

from collections.abc import Callable

from metergate.edges.resources import parse_id
from metergate.edges.violations import Violations


def read_name(parse: Callable[[str], str | None], name: str, field: str, form: str, violations: Violations) -> str:
    """The id in a resource's name; "", and a violation, if it is no such name."""
    found = parse(name)
    if found is None:
        violations.add(field, f"must be {form}")
    return found or ""


def read_names(
    parse: Callable[[str], tuple[str, str] | None], name: str, field: str, form: str, violations: Violations
) -> tuple[str, str]:
    """The subscriber's id and the other one in a resource's name."""
    found = parse(name)
    if found is None:
        violations.add(field, f"must be {form}")
    return found or ("", "")


def read_id(text: str, field: str, violations: Violations) -> str:
    """An id that can be one segment of a name."""
    form = "1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    return read_name(parse_id, text, field, form, violations)

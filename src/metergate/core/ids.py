"""Ids are short and printable: what a store, a log line and a person each see as one and the same text.

A NUL ends a text for some of SQLite's functions and not for others, so that two ids could be one here and two there.
"""

from metergate.core.errors import LedgerInvariantBroken, RequestInvalid, Violation

# Twice what the longest id of a request, a resource or our own making has: the edges are stricter.
ID_CHARACTERS_MAX = 256


def check_ids(**ids: str) -> None:
    """RequestInvalid, naming each, unless these ids are 1 to ID_CHARACTERS_MAX printable characters."""
    wrong = [name for name, value in ids.items() if not is_id(value)]
    if wrong:
        problem = f"must be 1 to {ID_CHARACTERS_MAX} printable characters"
        raise RequestInvalid(*(Violation(name, problem) for name in wrong))


def check_no_mark(mark: str, **ids: str) -> None:
    """RequestInvalid, naming each, if one of these ids has the mark, which is kept for the ledger's own."""
    wrong = [name for name, value in ids.items() if mark in value]
    if wrong:
        raise RequestInvalid(*(Violation(name, f"must not have a {mark!r}") for name in wrong))


def check_own_ids(**ids: str) -> None:
    """LedgerInvariantBroken unless these ids, which the gateway itself makes, are such."""
    for name, value in ids.items():
        if not is_id(value):
            raise LedgerInvariantBroken(problem=f"the {name} {value!r:.80} is not an id")


def is_id(text: str) -> bool:
    """Whether a text may be an id."""
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isprintable()

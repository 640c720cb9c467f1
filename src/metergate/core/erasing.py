"""Forgetting a subscriber: what names it is replaced by what tells nothing, and everything still adds up."""

from collections.abc import Callable

from metergate.core.errors import RequestInvalid, Violation
from metergate.core.grants import OWN_MARK, REFUND_OF, ROLLOVER
from metergate.core.ids import check_ids
from metergate.core.operations import EraseSubscriber

# As many as no two subscribers ever share.
PSEUDONYM_BYTES = 16

# A reason of a correction may name whom it was about.
ERASED_REASON = "(erased)"


def check_erasure(operation: EraseSubscriber) -> None:
    """RequestInvalid unless reason and actor are short printable texts that do not repeat what is to be forgotten."""
    check_ids(subscriber_id=operation.subscriber_id, reason=operation.reason, actor=operation.actor)
    forgotten = operation.subscriber_id.casefold()
    texts = (("reason", operation.reason), ("actor", operation.actor))
    named = [name for name, text in texts if forgotten in text.casefold()]
    if named:
        problem = "must not have the id that is to be forgotten: it is kept"
        raise RequestInvalid(*(Violation(name, problem) for name in named))


def subscriber_pseudonym(random: bytes) -> str:
    """What a subscriber that is forgotten is called from then on."""
    return f"erased-{random.hex()}"


def pseudonym(number: int) -> str:
    """What a grant or a correction of a subscriber that is forgotten is called from then on."""
    return f"erased-{number}"


def grant_pseudonym(
    grant_id: str, grant_number: Callable[[str], int | None], correction_number: Callable[[str], int | None]
) -> str | None:
    """What a grant is called from then on, by the numbers of what is there under the old ids; None if it is not there.

    Grants that the ledger itself made are named after what they were made of, and stay so: the ledger finds them by it.
    A grant and a correction may have the same id.
    """
    number = grant_number(grant_id)
    if number is None:
        return None
    own = pseudonym(number)

    def renamed(found: int | None) -> str:
        return own if found is None else pseudonym(found)

    kind, mark, source = grant_id.partition(OWN_MARK)
    if not mark:
        return own
    if kind.startswith(REFUND_OF):
        kind = REFUND_OF + renamed(grant_number(kind.removeprefix(REFUND_OF)))
    number_of_source = grant_number if kind == ROLLOVER else correction_number
    return kind + mark + renamed(number_of_source(source))

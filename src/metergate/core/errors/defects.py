"""What only a defect of the gateway raises."""

from dataclasses import dataclass

from metergate.core.errors.base import MetergateError


@dataclass(kw_only=True, eq=False)
class TransitionInvalid(MetergateError):
    """A reservation that is {state} cannot {event}."""

    state: str
    event: str


@dataclass(kw_only=True, eq=False)
class LedgerInvariantBroken(MetergateError):
    """The ledger refused an operation that would break a law: {problem}."""

    problem: str

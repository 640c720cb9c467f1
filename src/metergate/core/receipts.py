"""What an app is told of its request: that it was admitted, and what it cost."""

from dataclasses import dataclass

from metergate.core.embedding import Embeddings
from metergate.core.inference import Message
from metergate.core.rating import RateCard
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import CountingSource, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The request was admitted: credit is set aside and the prompt is counted."""

    subscriber_id: str
    reservation_id: str
    prompt_tokens: int
    model_id: str
    rate_card_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a request was charged, and why."""

    subscriber_id: str
    charge_id: str | None  # None: nothing was delivered and nothing is charged
    model_id: str
    rate_card_id: str
    counting_source: CountingSource
    usage_counted: Usage
    usage_reported: Usage | None
    charged_microcredits: int
    spendable_microcredits: int  # what the caller may still spend
    finish_reason: FinishReason
    close_cause: CloseCause
    replayed: bool

    def charge_name(self) -> str | None:
        """The charge's resource name, or None without a charge."""
        return f"subscribers/{self.subscriber_id}/charges/{self.charge_id}" if self.charge_id is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer, charged."""

    message: Message | None  # None: a replay whose text is no longer kept
    reasoning_content: str
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors, charged."""

    embeddings: Embeddings | None  # None: a replay whose vectors are no longer kept
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a prompt counts and the most that running it can cost now."""

    model_id: str
    prompt_tokens: int
    completion_tokens_max: int
    prompt_microcredits: int
    cost_microcredits_max: int
    rate_card: RateCard
    counting_source: CountingSource

"""What several services answer with: from the domain to the wire."""

from google.protobuf.timestamp_pb2 import Timestamp

from metergate.core.inference import Delta, Message, Role
from metergate.core.rating import RateCard
from metergate.core.receipts import Receipt
from metergate.core.reservation import CloseCause
from metergate.core.rows import FinishReason
from metergate.core.usage import CountingSource, TokenClass, Usage
from metergate.edges.resources import charge_name, rate_card_name
from metergate.v1 import catalog_pb2, chat_pb2, inference_pb2, usage_pb2

# Built by name at import, so that a word that the protos lack stops the gateway from starting.
_ROLES = {role: chat_pb2.Role.Value(f"ROLE_{role}") for role in Role}
_TOKEN_CLASSES = {kind: usage_pb2.TokenClass.Value(f"TOKEN_CLASS_{kind}") for kind in TokenClass}
COUNTING_SOURCES = {source: usage_pb2.CountingSource.Value(f"COUNTING_SOURCE_{source}") for source in CountingSource}
FINISH_REASONS = {reason: chat_pb2.FinishReason.Value(f"FINISH_REASON_{reason}") for reason in FinishReason}
CLOSE_CAUSES = {cause: inference_pb2.CloseCause.Value(f"CLOSE_CAUSE_{cause}") for cause in CloseCause}


def timestamp(time_us: int) -> Timestamp:
    """A time of microseconds since the epoch."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def usage_message(usage: Usage) -> usage_pb2.Usage:
    """Tokens by class."""
    return usage_pb2.Usage(
        token_counts=[usage_pb2.TokenCount(token_class=_TOKEN_CLASSES[kind], tokens=tokens) for kind, tokens in usage]
    )


def receipt_message(receipt: Receipt) -> inference_pb2.Receipt:
    """What was charged, and why."""
    return inference_pb2.Receipt(
        finish_reason=FINISH_REASONS[receipt.finish_reason],
        close_cause=CLOSE_CAUSES[receipt.close_cause],
        usage_counted=usage_message(receipt.usage_counted),
        usage_reported=None if receipt.usage_reported is None else usage_message(receipt.usage_reported),
        counting_source=COUNTING_SOURCES[receipt.counting_source],
        charged_microcredits=receipt.charged_microcredits,
        available_microcredits=receipt.spendable_microcredits,
        charge=charge_name(receipt.subscriber_id, receipt.charge_id),
        rate_card=rate_card_name(receipt.model_id, receipt.rate_card_id),
        replayed=receipt.replayed,
    )


def message_message(message: Message) -> chat_pb2.Message:
    """One turn of a conversation."""
    return chat_pb2.Message(
        role=_ROLES[message.role],
        content_parts=[chat_pb2.ContentPart(text=text) for text in message.parts],
        tool_calls=[
            chat_pb2.ToolCall(tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def delta_message(delta: Delta) -> chat_pb2.Delta:
    """A piece of an answer."""
    return chat_pb2.Delta(
        content=delta.content,
        reasoning_content=delta.reasoning_content,
        tool_calls=[
            chat_pb2.ToolCallDelta(
                index=call.index, tool_call_id=call.tool_call_id, name=call.name, arguments=call.arguments
            )
            for call in delta.tool_calls
        ],
    )


def rate_card_message(card: RateCard) -> catalog_pb2.RateCard:
    """A model's prices."""
    return catalog_pb2.RateCard(
        name=rate_card_name(card.model_id, card.rate_card_id),
        effective_time=timestamp(card.effective_time_us),
        expire_time=None if card.expire_time_us is None else timestamp(card.expire_time_us),
        token_prices=[
            catalog_pb2.TokenPrice(token_class=_TOKEN_CLASSES[kind], microcredits_per_million_tokens=price)
            for kind, price in card.prices
        ],
    )

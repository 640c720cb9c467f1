"""Domain rows as SQLite columns and back. A class's columns are named once, in the order of its tuple."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from metergate.core.rating import RateCard
from metergate.core.reservation import Allocation, CloseCause, Estimate, Owner, Reservation, ReservationState
from metergate.core.rows import (
    ApiKey,
    Attempt,
    Authorization,
    Channel,
    Charge,
    Correction,
    CorrectionKind,
    FinishReason,
    Grant,
    GrantSource,
    GrantTerms,
    Transfer,
    TransferKind,
    Wallet,
    WalletState,
)
from metergate.core.usage import CountingSource, TokenClass, Usage

Columns = tuple[Any, ...]  # one row as the driver binds and returns it

WALLET = "subscriber_id, state, sequence, create_time_us"
GRANT = (
    "grant_id, subscriber_id, source, priority, amount_microcredits, unspent_microcredits, effective_time_us, "
    "expire_time_us, create_time_us, rollover_microcredits_max, rollover_seconds, reverse_time_us"
)
AUTHORIZATION = (
    "authorization_id, subscriber_id, app_id, channel, cap_microcredits, allowed_models, charged_microcredits, "
    "create_time_us, revoke_time_us"
)
KEY = "key_id, secret_hash, authorization_id, create_time_us, revoke_time_us, prefix, expire_time_us, last_used_time_us"
RATE_CARD = "rate_card_id, model_id, effective_time_us, expire_time_us, prices"
RESERVATION = (
    "reservation_id, subscriber_id, authorization_id, app_id, channel, request_id, content_hash, owner_id, "
    "owner_epoch, model_id, provider_id, counting_source, rate_card_id, limit_microcredits, state, close_cause, "
    "reserved_microcredits, captured_microcredits, captured_usage, delivered_microcredits, allocations, "
    "create_time_us, close_time_us, estimate"
)
CHARGE = (
    "charge_id, reservation_id, subscriber_id, authorization_id, app_id, channel, request_id, content_hash, model_id, "
    "provider_id, attempts, counting_source, usage_counted, usage_reported, usage_mismatch, rate_card_id, "
    "captured_microcredits, charged_microcredits, delivered_microcredits, allocations, finish_reason, close_cause, "
    "create_time_us, settle_time_us"
)
TRANSFER = (
    "subscriber_id, sequence, kind, debit_account, credit_account, amount_microcredits, grant_id, charge_id, "
    "create_time_us, correction_id, grant_expire_time_us, grant_terms"
)
CORRECTION = (
    "correction_id, subscriber_id, kind, charge_id, grant_id, amount_microcredits, shortfall_microcredits, "
    "grant_seconds, reason, actor, create_time_us"
)

Member = TypeVar("Member", bound=StrEnum)


class _Members(dict[str, Member]):
    """An enumeration's members by value: calling it takes eight times as long. ValueError for anything else."""

    def __init__(self, kind: type[Member]) -> None:
        super().__init__({member.value: member for member in kind})
        self._kind = kind

    def __missing__(self, value: str) -> Member:
        return self._kind(value)


_WALLET_STATES, _GRANT_SOURCES, _CHANNELS = _Members(WalletState), _Members(GrantSource), _Members(Channel)
_RESERVATION_STATES, _CLOSE_CAUSES = _Members(ReservationState), _Members(CloseCause)
_COUNTING_SOURCES, _FINISH_REASONS = _Members(CountingSource), _Members(FinishReason)
_TRANSFER_KINDS, _TOKEN_CLASSES = _Members(TransferKind), _Members(TokenClass)

_encoder = msgspec.json.Encoder()
# A ValueError for anything else.
_amounts = msgspec.json.Decoder(list[tuple[str, int]])
_estimates = msgspec.json.Decoder(tuple[int, list[tuple[str, int]]])
_terms_values = msgspec.json.Decoder(tuple[str, int, int, int, int])
_attempts = msgspec.json.Decoder(list[list[str | int]])
_ids = msgspec.json.Decoder(tuple[str, ...])


def to_json(value: object) -> str:
    """Compact JSON text."""
    return _encoder.encode(value).decode()


def amounts(text: str) -> list[tuple[str, int]]:
    """Names with amounts, of allocations or usage as JSON text."""
    return _amounts.decode(text)


def usage_columns(usage: Usage) -> str:
    """Usage as JSON text."""
    return to_json(usage.tokens)


def allocation_columns(allocations: Iterable[Allocation]) -> str:
    """Allocations as JSON text."""
    return to_json([(part.grant_id, part.amount_microcredits) for part in allocations])


def _allocations(text: str) -> tuple[Allocation, ...]:
    return tuple(
        [Allocation(grant_id=grant_id, amount_microcredits=amount) for grant_id, amount in _amounts.decode(text)]
    )


def estimate_column(estimate: Estimate | None) -> str | None:
    """An estimate as JSON text; NULL for none."""
    return None if estimate is None else to_json((estimate.microcredits, estimate.usage.tokens))


def _estimate(text: str) -> Estimate:
    microcredits, amounts = _estimates.decode(text)
    return Estimate(usage=_usage_of(amounts), microcredits=microcredits)


def _terms_column(terms: GrantTerms) -> str:
    return to_json(
        (
            terms.source,
            terms.priority,
            terms.effective_time_us,
            terms.rollover_microcredits_max,
            terms.rollover_seconds,
        )
    )


def _terms(text: str) -> GrantTerms:
    source, priority, effective_time_us, rollover_microcredits_max, rollover_seconds = _terms_values.decode(text)
    return GrantTerms(
        source=GrantSource(source),
        priority=priority,
        effective_time_us=effective_time_us,
        rollover_microcredits_max=rollover_microcredits_max,
        rollover_seconds=rollover_seconds,
    )


def _usage(text: str) -> Usage:
    return _usage_of(_amounts.decode(text))


def _usage_of(amounts: list[tuple[str, int]]) -> Usage:
    return Usage(tuple([(_TOKEN_CLASSES[kind], tokens) for kind, tokens in amounts]))


# --- to columns -----------------------------------------------------------------------------------------------------


def wallet_columns(row: Wallet) -> Columns:
    """``WALLET``."""
    return (row.subscriber_id, row.state, row.sequence, row.create_time_us)


def grant_columns(row: Grant, set_aside_microcredits: int) -> Columns:
    """``GRANT``, of which so much is set aside."""
    return (
        row.grant_id,
        row.subscriber_id,
        row.source,
        row.priority,
        row.amount_microcredits,
        row.remaining_microcredits + set_aside_microcredits,
        row.effective_time_us,
        row.expire_time_us,
        row.create_time_us,
        row.rollover_microcredits_max,
        row.rollover_seconds,
        row.reverse_time_us,
    )


def authorization_columns(row: Authorization) -> Columns:
    """``AUTHORIZATION``."""
    return (
        row.authorization_id,
        row.subscriber_id,
        row.app_id,
        row.channel,
        row.cap_microcredits,
        to_json(row.allowed_models),
        row.charged_microcredits,
        row.create_time_us,
        row.revoke_time_us,
    )


def key_columns(row: ApiKey) -> Columns:
    """``KEY``."""
    return (
        row.key_id,
        row.secret_hash,
        row.authorization_id,
        row.create_time_us,
        row.revoke_time_us,
        row.prefix,
        row.expire_time_us,
        row.last_used_time_us,
    )


def rate_card_columns(row: RateCard) -> Columns:
    """``RATE_CARD``."""
    return (row.rate_card_id, row.model_id, row.effective_time_us, row.expire_time_us, to_json(row.prices))


def reservation_columns(row: Reservation) -> Columns:
    """``RESERVATION``."""
    return (
        row.reservation_id,
        row.subscriber_id,
        row.authorization_id,
        row.app_id,
        row.channel,
        row.request_id,
        row.content_hash,
        row.owner.owner_id,
        row.owner.epoch,
        row.model_id,
        row.provider_id,
        row.counting_source,
        row.rate_card_id,
        row.limit_microcredits,
        row.state,
        row.close_cause,
        row.reserved_microcredits,
        row.captured_microcredits,
        usage_columns(row.captured_usage),
        row.delivered_microcredits,
        allocation_columns(row.allocations),
        row.create_time_us,
        row.close_time_us,
        estimate_column(row.estimate),
    )


def charge_columns(row: Charge) -> Columns:
    """``CHARGE``."""
    return (
        row.charge_id,
        row.reservation_id,
        row.subscriber_id,
        row.authorization_id,
        row.app_id,
        row.channel,
        row.request_id,
        row.content_hash,
        row.model_id,
        row.provider_id,
        to_json(
            [
                (attempt.backend_id, attempt.problem, attempt.prompt_tokens, attempt.milliseconds)
                for attempt in row.attempts
            ]
        ),
        row.counting_source,
        usage_columns(row.usage_counted),
        None if row.usage_reported is None else usage_columns(row.usage_reported),
        int(row.usage_mismatch),
        row.rate_card_id,
        row.captured_microcredits,
        row.charged_microcredits,
        row.delivered_microcredits,
        allocation_columns(row.allocations),
        row.finish_reason,
        row.close_cause,
        row.create_time_us,
        row.settle_time_us,
    )


def transfer_columns(row: Transfer) -> Columns:
    """``TRANSFER``."""
    return (
        row.subscriber_id,
        row.sequence,
        row.kind,
        row.debit_account,
        row.credit_account,
        row.amount_microcredits,
        row.grant_id,
        row.charge_id,
        row.create_time_us,
        row.correction_id,
        row.grant_expire_time_us,
        None if row.grant_terms is None else _terms_column(row.grant_terms),
    )


def correction_columns(row: Correction) -> Columns:
    """``CORRECTION``."""
    return (
        row.correction_id,
        row.subscriber_id,
        row.kind,
        row.charge_id,
        row.grant_id,
        row.amount_microcredits,
        row.shortfall_microcredits,
        row.grant_seconds,
        row.reason,
        row.actor,
        row.create_time_us,
    )


# --- from columns ---------------------------------------------------------------------------------------------------


def wallet(columns: Columns) -> Wallet:
    """A row of ``WALLET``."""
    subscriber_id, state, sequence, create_time_us = columns
    return Wallet(
        subscriber_id=subscriber_id, state=_WALLET_STATES[state], sequence=sequence, create_time_us=create_time_us
    )


def grant(columns: Columns) -> Grant:
    """A row of ``GRANT_READ``."""
    return Grant(
        grant_id=columns[0],
        subscriber_id=columns[1],
        source=_GRANT_SOURCES[columns[2]],
        priority=columns[3],
        amount_microcredits=columns[4],
        remaining_microcredits=columns[5],
        effective_time_us=columns[6],
        expire_time_us=columns[7],
        create_time_us=columns[8],
        rollover_microcredits_max=columns[9],
        rollover_seconds=columns[10],
        reverse_time_us=columns[11],
    )


def authorization(columns: Columns) -> Authorization:
    """A row of ``AUTHORIZATION_READ``."""
    return Authorization(
        authorization_id=columns[0],
        subscriber_id=columns[1],
        app_id=columns[2],
        channel=_CHANNELS[columns[3]],
        cap_microcredits=columns[4],
        allowed_models=_ids.decode(columns[5]),
        charged_microcredits=columns[6],
        create_time_us=columns[7],
        revoke_time_us=columns[8],
        reserved_microcredits=columns[9],
    )


def key(columns: Columns) -> ApiKey:
    """A row of ``KEY``."""
    return ApiKey(
        key_id=columns[0],
        secret_hash=columns[1],
        authorization_id=columns[2],
        create_time_us=columns[3],
        revoke_time_us=columns[4],
        prefix=columns[5],
        expire_time_us=columns[6],
        last_used_time_us=columns[7],
    )


def rate_card(columns: Columns) -> RateCard:
    """A row of ``RATE_CARD``."""
    rate_card_id, model_id, effective_time_us, expire_time_us, prices = columns
    return RateCard(
        rate_card_id=rate_card_id,
        model_id=model_id,
        effective_time_us=effective_time_us,
        expire_time_us=expire_time_us,
        prices=tuple((_TOKEN_CLASSES[kind], price) for kind, price in _amounts.decode(prices)),
    )


def reservation(columns: Columns) -> Reservation:
    """A row of ``RESERVATION``."""
    return Reservation(
        reservation_id=columns[0],
        subscriber_id=columns[1],
        authorization_id=columns[2],
        app_id=columns[3],
        channel=columns[4],
        request_id=columns[5],
        content_hash=columns[6],
        owner=Owner(owner_id=columns[7], epoch=columns[8]),
        model_id=columns[9],
        provider_id=columns[10],
        counting_source=columns[11],
        rate_card_id=columns[12],
        limit_microcredits=columns[13],
        state=_RESERVATION_STATES[columns[14]],
        close_cause=None if columns[15] is None else _CLOSE_CAUSES[columns[15]],
        reserved_microcredits=columns[16],
        captured_microcredits=columns[17],
        captured_usage=_usage(columns[18]),
        delivered_microcredits=columns[19],
        allocations=_allocations(columns[20]),
        create_time_us=columns[21],
        close_time_us=columns[22],
        estimate=None if columns[23] is None else _estimate(columns[23]),
    )


def _attempt(backend_id: str | int, problem: str | int, *cost: str | int) -> Attempt:
    """One of a charge's attempts; charges of earlier versions tell nothing of its cost."""
    prompt_tokens, milliseconds = cost or (0, 0)
    if (
        isinstance(backend_id, str)
        and isinstance(problem, str)
        and isinstance(prompt_tokens, int)
        and isinstance(milliseconds, int)
    ):
        return Attempt(backend_id=backend_id, problem=problem, prompt_tokens=prompt_tokens, milliseconds=milliseconds)
    raise ValueError("an attempt is [backend id, problem, prompt tokens, milliseconds]")


def charge(columns: Columns) -> Charge:
    """A row of ``CHARGE``."""
    return Charge(
        charge_id=columns[0],
        reservation_id=columns[1],
        subscriber_id=columns[2],
        authorization_id=columns[3],
        app_id=columns[4],
        channel=_CHANNELS[columns[5]],
        request_id=columns[6],
        content_hash=columns[7],
        model_id=columns[8],
        provider_id=columns[9],
        attempts=tuple(_attempt(*columns) for columns in _attempts.decode(columns[10])),
        counting_source=_COUNTING_SOURCES[columns[11]],
        usage_counted=_usage(columns[12]),
        usage_reported=None if columns[13] is None else _usage(columns[13]),
        usage_mismatch=bool(columns[14]),
        rate_card_id=columns[15],
        captured_microcredits=columns[16],
        charged_microcredits=columns[17],
        delivered_microcredits=columns[18],
        allocations=_allocations(columns[19]),
        finish_reason=_FINISH_REASONS[columns[20]],
        close_cause=_CLOSE_CAUSES[columns[21]],
        create_time_us=columns[22],
        settle_time_us=columns[23],
    )


def transfer(columns: Columns) -> Transfer:
    """A row of ``TRANSFER``."""
    return Transfer(
        subscriber_id=columns[0],
        sequence=columns[1],
        kind=_TRANSFER_KINDS[columns[2]],
        debit_account=columns[3],
        credit_account=columns[4],
        amount_microcredits=columns[5],
        grant_id=columns[6],
        charge_id=columns[7],
        create_time_us=columns[8],
        correction_id=columns[9],
        grant_expire_time_us=columns[10],
        grant_terms=None if columns[11] is None else _terms(columns[11]),
    )


def correction(columns: Columns) -> Correction:
    """A row of ``CORRECTION``."""
    return Correction(
        correction_id=columns[0],
        subscriber_id=columns[1],
        kind=CorrectionKind(columns[2]),
        charge_id=columns[3],
        grant_id=columns[4],
        amount_microcredits=columns[5],
        shortfall_microcredits=columns[6],
        grant_seconds=columns[7],
        reason=columns[8],
        actor=columns[9],
        create_time_us=columns[10],
    )

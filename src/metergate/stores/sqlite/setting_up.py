"""Keys and rate cards: written beside the ledger, each checked before the first row is written."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace

from metergate.core.errors import AuthorizationRevoked, IdConflict, ResourceNotFound
from metergate.core.ids import check_ids
from metergate.core.rating import RateCard
from metergate.core.rows import ApiKey
from metergate.core.set_up import check_key
from metergate.stores.sqlite import codec

# ruff: noqa: S608 - every SQL text is put together from constants; values are bound


def add_key(connection: sqlite3.Connection, key: ApiKey) -> ApiKey:
    """Record a key, or return the one that was recorded with this id, secret and authorization."""
    check_ids(key_id=key.key_id)
    first = _find_key(connection, key.key_id)
    if first is not None:
        if (first.secret_hash, first.authorization_id) != (key.secret_hash, key.authorization_id):
            raise IdConflict(resource="key", id=key.key_id)
        return first
    check_key(key)
    if _revoke_time_us(connection, key.authorization_id) is not None:
        raise AuthorizationRevoked
    if connection.execute("SELECT 1 FROM keys WHERE secret_hash = ?", (key.secret_hash,)).fetchone() is not None:
        raise IdConflict(resource="key", id=key.key_id)
    connection.execute(f"INSERT INTO keys ({codec.KEY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", codec.key_columns(key))
    return key


def revoke_key(connection: sqlite3.Connection, key_id: str, now_us: int) -> ApiKey:
    """Record when a key was revoked first; ResourceNotFound if there is none."""
    key = _find_key(connection, key_id)
    if key is None:
        raise ResourceNotFound(resource_name=f"keys/{key_id}")
    if key.revoke_time_us is not None:
        return key
    connection.execute("UPDATE keys SET revoke_time_us = ? WHERE key_id = ?", (now_us, key_id))
    return replace(key, revoke_time_us=now_us)


def record_key_uses(connection: sqlite3.Connection, use_times_us: Mapping[str, int]) -> None:
    """Record when keys were last used, where that is later than what is recorded."""
    connection.executemany(
        "UPDATE keys SET last_used_time_us = ?1 WHERE key_id = ?2 AND coalesce(last_used_time_us, 0) < ?1",
        [(use_time_us, key_id) for key_id, use_time_us in use_times_us.items()],
    )


def add_rate_cards(connection: sqlite3.Connection, cards: Sequence[RateCard]) -> None:
    """Record the cards that are new; IdConflict, having recorded none, if one is known with other content."""
    insert = f"INSERT INTO rate_cards ({codec.RATE_CARD}) VALUES (?, ?, ?, ?, ?)"
    connection.executemany(insert, [codec.rate_card_columns(card) for card in new_rate_cards(connection, cards)])


def new_rate_cards(connection: sqlite3.Connection, cards: Sequence[RateCard]) -> list[RateCard]:
    """The cards that are not recorded yet; IdConflict if one is, with other content."""
    select = f"SELECT {codec.RATE_CARD} FROM rate_cards WHERE rate_card_id = ?"
    new: dict[str, RateCard] = {}
    for card in cards:
        columns = connection.execute(select, (card.rate_card_id,)).fetchone()
        first = new.get(card.rate_card_id) if columns is None else codec.rate_card(columns)
        if first is None:
            new[card.rate_card_id] = card
        elif first != card:
            raise IdConflict(resource="rate card", id=card.rate_card_id)
    return list(new.values())


def _revoke_time_us(connection: sqlite3.Connection, authorization_id: str) -> int | None:
    """When an authorization was revoked; ResourceNotFound if there is none."""
    select = "SELECT revoke_time_us FROM authorizations WHERE authorization_id = ?"
    columns: tuple[int | None] | None = connection.execute(select, (authorization_id,)).fetchone()
    if columns is None:
        raise ResourceNotFound(resource_name=f"authorizations/{authorization_id}")
    return columns[0]


def _find_key(connection: sqlite3.Connection, key_id: str) -> ApiKey | None:
    columns = connection.execute(f"SELECT {codec.KEY} FROM keys WHERE key_id = ?", (key_id,)).fetchone()
    return None if columns is None else codec.key(columns)

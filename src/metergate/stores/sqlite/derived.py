"""What is not stored of a row, but computed where it is read: what open reservations set aside of it."""

from metergate.stores.sqlite import codec


def qualified(table: str, columns: str) -> str:
    """The columns with the table's name before each, for joins."""
    return ", ".join(f"{table}.{column.strip()}" for column in columns.split(","))


# The parts of an open reservation's allocations. What cannot be read sets nothing aside: it is a difference that the
# audit names, and must not keep all others from being read.
OPEN_PARTS = """
    reservations AS open INDEXED BY reservations_active,
    json_each(iif(json_valid(open.allocations), open.allocations, '[]')) AS part
"""
PART_GRANT_ID = "CASE part.type WHEN 'array' THEN part.value ->> 0 END"
PART_MICROCREDITS = "CASE part.type WHEN 'array' THEN CAST(part.value ->> 1 AS INTEGER) END"

# What is read of a grant: what remains is what is unspent less what open reservations set aside of it.
_SET_ASIDE = f"""(
    SELECT coalesce(sum({PART_MICROCREDITS}), 0) FROM {OPEN_PARTS}
    WHERE open.state = 'ACTIVE' AND open.subscriber_id = grants.subscriber_id AND {PART_GRANT_ID} = grants.grant_id
)"""  # noqa: S608 - of constants
GRANT_READ = qualified("grants", codec.GRANT).replace("unspent_microcredits", f"unspent_microcredits - {_SET_ASIDE}")

# What is read of an authorization: with what its open reservations reserved.
_RESERVED = """(
    SELECT coalesce(sum(open.reserved_microcredits), 0) FROM reservations AS open INDEXED BY reservations_active
    WHERE open.state = 'ACTIVE' AND open.subscriber_id = authorizations.subscriber_id
        AND open.authorization_id = authorizations.authorization_id
)"""
AUTHORIZATION_READ = f"{qualified('authorizations', codec.AUTHORIZATION)}, {_RESERVED}"

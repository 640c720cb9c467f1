-- What an open reservation sets aside stands on the reservation alone, where its rows are appended: it is not taken from
-- the grants and counted on the authorization too, which lie anywhere in a large file.

ALTER TABLE grants RENAME COLUMN remaining_microcredits TO unspent_microcredits; -- remaining, or set aside by open reservations

UPDATE grants SET unspent_microcredits = unspent_microcredits + aside.microcredits
FROM (
    SELECT
        subscriber_id,
        CASE part.type WHEN 'array' THEN part.value ->> 0 END AS grant_id,
        sum(CASE part.type WHEN 'array' THEN CAST(part.value ->> 1 AS INTEGER) END) AS microcredits
    FROM reservations INDEXED BY reservations_active, json_each(iif(json_valid(allocations), allocations, '[]')) AS part
    WHERE state = 'ACTIVE'
    GROUP BY 1, 2
) AS aside
WHERE grants.subscriber_id = aside.subscriber_id AND grants.grant_id = aside.grant_id;

ALTER TABLE authorizations DROP COLUMN reserved_microcredits;

-- Settled reservations are found by their charges. Only released ones need an index, so that they can be erased.
DROP INDEX reservations_by_subscriber;
CREATE INDEX reservations_released ON reservations (subscriber_id) WHERE state = 'RELEASED';

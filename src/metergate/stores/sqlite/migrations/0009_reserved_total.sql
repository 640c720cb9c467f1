-- What all open reservations have reserved, counted beside them: what another program deletes or changes of them shows.
-- Whole credits and the microcredits beyond them, as in account_days.

ALTER TABLE meta ADD COLUMN reserved_credits INTEGER NOT NULL DEFAULT 0 CHECK (reserved_credits >= 0);
ALTER TABLE meta ADD COLUMN reserved_rest INTEGER NOT NULL DEFAULT 0 CHECK (reserved_rest BETWEEN 0 AND 999999);

UPDATE meta SET
    reserved_credits = open.credits + open.rests / 1000000,
    reserved_rest = open.rests % 1000000
FROM (
    SELECT
        coalesce(sum(reserved_microcredits / 1000000), 0) AS credits,
        coalesce(sum(reserved_microcredits % 1000000), 0) AS rests
    FROM reservations INDEXED BY reservations_active WHERE state = 'ACTIVE'
) AS open;

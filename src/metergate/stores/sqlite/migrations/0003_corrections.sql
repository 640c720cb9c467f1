-- Refunds, adjustments, reversals, suspensions; grants that roll over; charges that outlive what they were made from.
-- The table of charges is made anew: SQLite cannot drop a foreign key. Foreign keys are off meanwhile, and checked before
-- the commit (connection.py).

-- When the grant expires, at most this much of it goes on in another grant, for so many seconds.
ALTER TABLE grants ADD COLUMN rollover_microcredits_max INTEGER NOT NULL DEFAULT 0
    CHECK (rollover_microcredits_max >= 0);
ALTER TABLE grants ADD COLUMN rollover_seconds INTEGER NOT NULL DEFAULT 0 CHECK (rollover_seconds >= 0);
ALTER TABLE grants ADD COLUMN reverse_time_us INTEGER; -- its payment was taken back; NULL: it was not
-- Set once, by the sweep, after the grant expired. The sweep's index names nothing that a charge changes, so that charges
-- never write it.
ALTER TABLE grants ADD COLUMN is_swept INTEGER NOT NULL DEFAULT 0 CHECK (is_swept IN (0, 1));
CREATE INDEX grants_to_sweep ON grants (expire_time_us) WHERE is_swept = 0 AND expire_time_us IS NOT NULL;

ALTER TABLE transfers ADD COLUMN correction_id TEXT NOT NULL DEFAULT ''; -- '': no correction moved it
-- Of the grant that the transfer adds, as it was agreed; NULL: never, or it adds none.
ALTER TABLE transfers ADD COLUMN grant_expire_time_us INTEGER;
UPDATE transfers SET grant_expire_time_us = (
    SELECT expire_time_us FROM grants
    WHERE grants.subscriber_id = transfers.subscriber_id AND grants.grant_id = transfers.grant_id
) WHERE kind = 'GRANT';

-- What an operator did to a wallet, why, and who. Immutable.
CREATE TABLE corrections (
    correction_number INTEGER PRIMARY KEY, -- order of recording; pages are cut by it
    correction_id TEXT NOT NULL,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    kind TEXT NOT NULL,
    charge_id TEXT NOT NULL, -- of a REFUND; else ''
    grant_id TEXT NOT NULL, -- of a REVERSAL; else ''
    amount_microcredits INTEGER NOT NULL, -- moved; below 0: out of the wallet by an ADJUSTMENT
    shortfall_microcredits INTEGER NOT NULL CHECK (shortfall_microcredits >= 0),
    grant_seconds INTEGER CHECK (grant_seconds > 0), -- how long the grant that it adds lives; NULL: for ever, or it adds none
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    create_time_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX corrections_by_id ON corrections (subscriber_id, correction_id);
CREATE INDEX corrections_by_subscriber ON corrections (subscriber_id, correction_number);
CREATE INDEX corrections_by_charge ON corrections (charge_id) WHERE charge_id <> ''; -- what of a charge was refunded

CREATE TABLE charges_anew (
    charge_number INTEGER PRIMARY KEY, -- order of settling; pages are cut by it
    charge_id TEXT NOT NULL UNIQUE,
    reservation_id TEXT NOT NULL UNIQUE, -- pruned some time after it was closed
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    authorization_id TEXT NOT NULL, -- perhaps erased
    app_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    request_id TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    model_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    attempts TEXT NOT NULL, -- JSON array of [backend_id, problem]
    counting_source TEXT NOT NULL,
    usage_counted TEXT NOT NULL, -- JSON array of [token class, tokens]
    usage_reported TEXT, -- likewise; NULL: the backend reported none
    usage_mismatch INTEGER NOT NULL CHECK (usage_mismatch IN (0, 1)),
    rate_card_id TEXT NOT NULL,
    captured_microcredits INTEGER NOT NULL,
    charged_microcredits INTEGER NOT NULL
        CHECK (charged_microcredits >= 0 AND charged_microcredits <= captured_microcredits),
    allocations TEXT NOT NULL, -- what paid it: JSON array of [grant_id, microcredits] in burn order
    finish_reason TEXT NOT NULL,
    close_cause TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    settle_time_us INTEGER NOT NULL
) STRICT;

-- A window, because the order of an aggregate's rows is only promised there.
WITH allocated AS MATERIALIZED (
    SELECT DISTINCT
        charge_id,
        json_group_array(json_array(grant_id, amount_microcredits)) OVER (
            PARTITION BY charge_id ORDER BY sequence ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS allocations
    FROM transfers WHERE kind = 'CHARGE'
)
INSERT INTO charges_anew
SELECT
    charge_number, charge_id, reservation_id, subscriber_id, authorization_id, app_id, channel, request_id, content_hash,
    model_id, provider_id, attempts, counting_source, usage_counted, usage_reported, usage_mismatch, rate_card_id,
    captured_microcredits, charged_microcredits, coalesce(allocations, '[]'), finish_reason, close_cause, create_time_us,
    settle_time_us
FROM charges LEFT JOIN allocated USING (charge_id)
ORDER BY charge_number;

DROP TABLE charges;
ALTER TABLE charges_anew RENAME TO charges;
CREATE UNIQUE INDEX charges_by_request ON charges (subscriber_id, authorization_id, request_id);
CREATE INDEX charges_by_subscriber ON charges (subscriber_id, charge_number);

-- What keeps a ledger small, watched and forgetful. Amounts are microcredits, times microseconds since the epoch (UTC).

-- What moved in and out of each account a day: balances without a row that every charge would wait for. Each sum is whole
-- credits and the microcredits beyond them: two of the largest grants on one day are more than 64 bits of microcredits.
CREATE TABLE account_days (
    account TEXT NOT NULL, -- a business account; 'grants': the accounts of all grants together
    day INTEGER NOT NULL, -- days since the epoch, UTC
    debited_credits INTEGER NOT NULL CHECK (debited_credits >= 0),
    debited_rest INTEGER NOT NULL CHECK (debited_rest >= 0 AND debited_rest < 1000000),
    credited_credits INTEGER NOT NULL CHECK (credited_credits >= 0),
    credited_rest INTEGER NOT NULL CHECK (credited_rest >= 0 AND credited_rest < 1000000),
    PRIMARY KEY (account, day)
) STRICT, WITHOUT ROWID;

INSERT INTO account_days
SELECT
    account,
    day,
    sum(debited / 1000000) + sum(debited % 1000000) / 1000000,
    sum(debited % 1000000) % 1000000,
    sum(credited / 1000000) + sum(credited % 1000000) / 1000000,
    sum(credited % 1000000) % 1000000
FROM (
    SELECT
        CASE WHEN substr(debit_account, 1, 6) = 'grant:' THEN 'grants' ELSE debit_account END AS account,
        create_time_us / 86400000000 AS day,
        amount_microcredits AS debited,
        0 AS credited
    FROM transfers
    UNION ALL
    SELECT
        CASE WHEN substr(credit_account, 1, 6) = 'grant:' THEN 'grants' ELSE credit_account END,
        create_time_us / 86400000000,
        0,
        amount_microcredits
    FROM transfers
)
GROUP BY account, day;

-- Closed reservations that closed before this may be gone: their charges are what is left of them.
ALTER TABLE meta ADD COLUMN reservations_pruned_before_us INTEGER NOT NULL DEFAULT 0;

-- What is known to have been delivered of what was charged; only a charge of a CRASH may be above it.
ALTER TABLE charges ADD COLUMN delivered_microcredits INTEGER NOT NULL DEFAULT 0
    CHECK (delivered_microcredits >= 0 AND delivered_microcredits <= captured_microcredits);

UPDATE charges
SET delivered_microcredits = CASE close_cause
    WHEN 'CRASH' THEN coalesce(
        (SELECT r.delivered_microcredits FROM reservations AS r WHERE r.reservation_id = charges.reservation_id), 0
    )
    ELSE charged_microcredits
END;

-- Subscribers that were forgotten: their rows are still there, under a pseudonym that tells nothing.
CREATE TABLE erasures (
    subscriber_id TEXT PRIMARY KEY NOT NULL REFERENCES wallets, -- the pseudonym
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    erase_time_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The table of reservations is made anew without its references to authorizations, which can be erased, and to owners,
-- which are forgotten with the last reservation: to check them, removing one would read every reservation.
CREATE TABLE reservations_anew (
    reservation_id TEXT PRIMARY KEY NOT NULL,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    authorization_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    request_id TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    owner_id TEXT NOT NULL,
    owner_epoch INTEGER NOT NULL,
    model_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    counting_source TEXT NOT NULL,
    rate_card_id TEXT NOT NULL,
    limit_microcredits INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ACTIVE', 'SETTLED', 'RELEASED')),
    close_cause TEXT CHECK ((close_cause IS NULL) = (state = 'ACTIVE')),
    reserved_microcredits INTEGER NOT NULL CHECK (reserved_microcredits <= limit_microcredits),
    captured_microcredits INTEGER NOT NULL CHECK (captured_microcredits <= reserved_microcredits),
    captured_usage TEXT NOT NULL, -- JSON array of [token class, tokens]
    delivered_microcredits INTEGER NOT NULL
        CHECK (delivered_microcredits >= 0 AND delivered_microcredits <= captured_microcredits),
    allocations TEXT NOT NULL, -- JSON array of [grant_id, microcredits] in burn order
    create_time_us INTEGER NOT NULL,
    close_time_us INTEGER CHECK ((close_time_us IS NULL) = (state = 'ACTIVE'))
) STRICT;

INSERT INTO reservations_anew SELECT * FROM reservations ORDER BY rowid;
DROP TABLE reservations;
ALTER TABLE reservations_anew RENAME TO reservations;

-- A request runs at most once at a time; also how recovery and the audit find what is open.
CREATE UNIQUE INDEX reservations_active ON reservations (subscriber_id, authorization_id, request_id)
    WHERE state = 'ACTIVE';
CREATE INDEX reservations_by_subscriber ON reservations (subscriber_id);

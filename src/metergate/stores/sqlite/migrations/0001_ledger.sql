-- The ledger of one cell. Amounts are microcredits, times are microseconds since the epoch (UTC), both signed 64-bit.
-- The CHECKs repeat laws that the core has decided already: a defect must fail here rather than be stored.

CREATE TABLE meta (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content_key BLOB NOT NULL CHECK (length(content_key) = 32), -- keys the hashes of requests' content
    create_time_us INTEGER NOT NULL
) STRICT;

-- One row for each time a gateway opened this file; only the newest is alive.
CREATE TABLE owners (
    owner_id TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    start_time_us INTEGER NOT NULL,
    heartbeat_time_us INTEGER NOT NULL,
    PRIMARY KEY (owner_id, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE wallets (
    subscriber_id TEXT PRIMARY KEY NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ACTIVE', 'SUSPENDED')),
    sequence INTEGER NOT NULL CHECK (sequence >= 0), -- of the last transfer
    create_time_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    grant_number INTEGER PRIMARY KEY, -- order of insertion; pages are cut by it
    grant_id TEXT NOT NULL,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    source TEXT NOT NULL,
    priority INTEGER NOT NULL,
    amount_microcredits INTEGER NOT NULL CHECK (amount_microcredits > 0),
    remaining_microcredits INTEGER NOT NULL
        CHECK (remaining_microcredits >= 0 AND remaining_microcredits <= amount_microcredits),
    effective_time_us INTEGER NOT NULL,
    expire_time_us INTEGER CHECK (expire_time_us > effective_time_us),
    create_time_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX grants_by_id ON grants (subscriber_id, grant_id);
-- What a wallet can be drawn from: spent grants leave it, so that a reserve never reads them.
CREATE INDEX grants_with_credit ON grants (subscriber_id) WHERE remaining_microcredits > 0;

CREATE TABLE authorizations (
    authorization_id TEXT PRIMARY KEY NOT NULL,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    app_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    cap_microcredits INTEGER CHECK (cap_microcredits >= 0),
    allowed_models TEXT NOT NULL, -- JSON array
    charged_microcredits INTEGER NOT NULL CHECK (charged_microcredits >= 0),
    reserved_microcredits INTEGER NOT NULL CHECK (reserved_microcredits >= 0),
    create_time_us INTEGER NOT NULL,
    revoke_time_us INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX authorizations_by_subscriber ON authorizations (subscriber_id);

CREATE TABLE keys (
    key_id TEXT PRIMARY KEY NOT NULL,
    secret_hash BLOB NOT NULL UNIQUE,
    authorization_id TEXT NOT NULL REFERENCES authorizations,
    create_time_us INTEGER NOT NULL,
    revoke_time_us INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE rate_cards (
    rate_card_id TEXT PRIMARY KEY NOT NULL,
    model_id TEXT NOT NULL,
    effective_time_us INTEGER NOT NULL,
    expire_time_us INTEGER,
    prices TEXT NOT NULL -- JSON array of [token class, microcredits per 1,000,000 tokens]
) STRICT, WITHOUT ROWID;

CREATE TABLE reservations (
    reservation_id TEXT PRIMARY KEY NOT NULL,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    authorization_id TEXT NOT NULL REFERENCES authorizations,
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
    close_time_us INTEGER CHECK ((close_time_us IS NULL) = (state = 'ACTIVE')),
    FOREIGN KEY (owner_id, owner_epoch) REFERENCES owners (owner_id, epoch)
) STRICT;

-- A request runs at most once at a time; also how recovery and the audit find what is open.
CREATE UNIQUE INDEX reservations_active ON reservations (subscriber_id, authorization_id, request_id)
    WHERE state = 'ACTIVE';
CREATE INDEX reservations_by_subscriber ON reservations (subscriber_id);

CREATE TABLE charges (
    charge_number INTEGER PRIMARY KEY, -- order of settling; pages are cut by it
    charge_id TEXT NOT NULL UNIQUE,
    reservation_id TEXT NOT NULL UNIQUE REFERENCES reservations,
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    authorization_id TEXT NOT NULL REFERENCES authorizations,
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
    finish_reason TEXT NOT NULL,
    close_cause TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    settle_time_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX charges_by_request ON charges (subscriber_id, authorization_id, request_id);
CREATE INDEX charges_by_subscriber ON charges (subscriber_id, charge_number);

CREATE TABLE transfers (
    subscriber_id TEXT NOT NULL REFERENCES wallets,
    sequence INTEGER NOT NULL CHECK (sequence > 0),
    kind TEXT NOT NULL,
    debit_account TEXT NOT NULL,
    credit_account TEXT NOT NULL CHECK (credit_account <> debit_account),
    amount_microcredits INTEGER NOT NULL CHECK (amount_microcredits > 0),
    grant_id TEXT NOT NULL,
    charge_id TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    PRIMARY KEY (subscriber_id, sequence)
) STRICT, WITHOUT ROWID;
